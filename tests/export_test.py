"""What is written is read by JAX alone, in a process that never imports this library."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export

from se_flax import cli, create_model
from se_flax.errors import UserError
from se_flax.export import export_network, export_onnx, save_exported
from se_flax.models import fold_batch_norm
from se_flax.weights import Preprocessing, save_weights

MEAN, STD = (120.0, 121.0, 122.0), (60.0, 61.0, 62.0)
# Of the largest logit. Another program adds float32 numbers in another order: through 50 layers
# that makes 2e-5. A mean or deviation that is off by one, in one channel, makes 5e-3.
ROUNDING = 1e-4
READER = """
import sys
import numpy as np
from jax import export

path, images, logits = sys.argv[1:]
exported = export.deserialize(open(path, 'rb').read())
np.save(logits, exported.call(np.load(images)))
assert not {'se_flax', 'flax'} & set(sys.modules)
"""


def random_images(*shape):
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def read_and_call(path, images):
    given, got = path.with_suffix('.images.npy'), path.with_suffix('.logits.npy')
    np.save(given, images)
    subprocess.run([sys.executable, '-c', READER, path, given, got], check=True)
    return np.load(got)


@pytest.mark.rounding
@pytest.mark.parametrize(
    ('name', 'size', 'fields', 'folded'),
    [
        ('se_resnet8_cifar', 32, {}, False),
        ('se_resnet8_cifar', 32, {}, True),
        ('se_shufflenet', 64, {'stage_sizes': (1, 1, 2)}, True),  # groups and depthwise
    ],
)
def test_another_process_has_the_same_logits(name, size, fields, folded, tmp_path):
    model = create_model(name, num_classes=7, **fields)
    images = random_images(3, size, size, 3)
    normalized = (images.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    variables = jax.jit(model.init)(jax.random.key(0), normalized)
    want = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, normalized)
    if folded:
        model, variables = fold_batch_norm(model, variables)
    exported = export_network(model, variables, size, mean=MEAN, std=STD)
    assert exported.platforms == ('cpu', 'cuda', 'tpu')
    save_exported(tmp_path / 'network', exported)
    got = read_and_call(tmp_path / 'network', images)
    assert (got.shape, got.dtype) == ((3, 7), np.float32)
    np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING * np.abs(want).max())


@pytest.mark.rounding
def test_the_batch_is_open_or_fixed():
    model = create_model('se_resnet8_cifar')
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3)))
    rest = {'mean': MEAN, 'std': STD, 'platforms': ('cpu',)}
    free = export_network(model, variables, 32, **rest)
    images = random_images(5, 32, 32, 3)
    both = free.call(images), free.call(images[:1])
    tolerance = {'rtol': 0, 'atol': ROUNDING * np.abs(both[0]).max()}
    np.testing.assert_allclose(both[0][:1], both[1], **tolerance)
    fixed = export_network(model, variables, 32, batch_size=5, **rest)
    np.testing.assert_allclose(fixed.call(images), both[0], **tolerance)
    with pytest.raises(ValueError, match='shape'):
        fixed.call(images[:1])


def test_every_network_can_be_exported():
    """Nothing in any of them needs to know the batch."""
    for name in (
        'vgg16',
        'regnet_y_200mf',
        'se_bn_inception',
        'se_shake_shake26_2x96d',
        'se_preact_resnet110',
    ):
        model = create_model(name)
        size = 224 if 'vgg' in name else 64
        shape = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
        variables = jax.eval_shape(lambda x, m=model: m.init(jax.random.key(0), x), shape)
        variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables)
        batch = jax.ShapeDtypeStruct((*export.symbolic_shape('b'), size, size, 3), np.float32)
        logits = jax.eval_shape(lambda v, x, m=model: m.apply(v, x, train=False), variables, batch)
        assert str(logits.shape[0]) == 'b'


@pytest.mark.parametrize('export_to', [export_network, export_onnx])
def test_more_weights_than_a_file_holds_are_refused(export_to):
    """As those of regnet_y_128gf."""
    variables = {'params': jax.ShapeDtypeStruct((2**29,), np.float32)}
    with pytest.raises(UserError, match='2,147,483,648 bytes; an exported file holds at most'):
        export_to(create_model('se_resnet8_cifar'), variables, 32, mean=MEAN, std=STD)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A weights file, its network and its variables."""
    model = create_model('se_resnet8_cifar')
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3)))
    path = tmp_path_factory.mktemp('weights') / 'network.safetensors'
    view = Preprocessing(32, 36, 'bicubic', MEAN, STD)
    save_weights(path, 'se_resnet8_cifar', variables, view)
    return path, model, variables


def test_on_the_command_line(weights, tmp_path, capsys):
    path, model, variables = weights
    out = tmp_path / 'mine.stablehlo'
    arguments = ['--weights', str(path), '--fold', '--platforms', 'cpu', '--out', str(out)]
    assert cli.main(['export', *arguments]) == 0
    assert capsys.readouterr().out == (
        f'{out}: {path} for cpu; images uint8[b,32,32,3], RGB, resized to 36 (bicubic); '
        'logits float32[b,10]\n'
    )
    images = random_images(4, 32, 32, 3)
    want = model.apply(variables, (images - np.float32(MEAN)) / np.float32(STD), train=False)
    got = read_and_call(out, images)
    np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING * np.abs(want).max())


@pytest.mark.parametrize(
    ('out', 'rest', 'error'),
    [
        ('no/x', [], 'cannot write {folder}/no/x: no folder {folder}/no'),
        ('x', ['--platforms', 'cpu,gpu'], "unknown platform 'gpu': cpu, cuda, rocm or tpu"),
        ('x', ['--dtype', 'float16'], "unknown dtype 'float16': did you mean bfloat16 or float32?"),
        ('x', ['--batch-size', '0'], 'batch_size=0 must be at least 1'),
    ],
)
def test_mistakes(out, rest, error, weights, tmp_path, capsys):
    arguments = ['--weights', str(weights[0]), '--out', str(tmp_path / out), *rest]
    assert cli.main(['export', *arguments]) == 2
    assert capsys.readouterr().err == f'error: {error.format(folder=tmp_path)}\n'
    assert not list(tmp_path.iterdir())


def test_the_weights_are_not_overwritten(weights, tmp_path, capsys):
    path = tmp_path / 'network.safetensors'
    path.write_bytes(weights[0].read_bytes())
    assert cli.main(['export', '--weights', str(path), '--out', str(path)]) == 2
    said = f'error: {path} would overwrite the input {path}; choose another output file\n'
    assert capsys.readouterr().err == said
    assert path.read_bytes() == weights[0].read_bytes()
