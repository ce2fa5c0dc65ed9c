"""A converted file on the command line: evaluation and prediction as the file says."""

import cv2
import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from se_flax import cli
from se_flax.data import decode, open_dataset
from se_flax.errors import UserError
from se_flax.inference import open_weights
from se_flax.models import create_model
from se_flax.weights import Preprocessing, convert, load_weights, save_weights

pytestmark = pytest.mark.quick

DATA = 'fashion_mnist_mini'
VIEW = Preprocessing(28, 0, 'bilinear', (70.0, 71.0, 72.0), (80.0, 81.0, 82.0))


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path_factory):
    """What is compiled is kept in a folder of the tests, not in the user's."""
    home = tmp_path_factory.getbasetemp() / 'home'
    monkeypatch.setenv('HOME', str(home))
    yield home
    jax.config.update('jax_compilation_cache_dir', None)


@pytest.fixture(scope='module')
def converted(weights, tmp_path_factory):
    """A safetensors file under pytorchcv's names, converted."""
    folder = tmp_path_factory.mktemp('convert')
    state = weights.to_torch(weights.cifar_modules(), weights.flat_variables('resnet8_cifar'))
    safetensors.numpy.save_file(state, folder / 'model.safetensors')
    arguments = [str(folder / 'model.safetensors'), '--model', 'resnet8_cifar']
    assert cli.main(['convert', *arguments, '--out', str(folder / 'out.safetensors')]) == 0
    return folder / 'out.safetensors'


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_convert_says_what_it_did(converted, capsys):
    source, out = converted.with_name('model.safetensors'), converted.with_name('2.safetensors')
    code, text, _ = run(capsys, 'convert', source, '--model', 'resnet8_cifar', '--out', out)
    assert (code, out.read_bytes()) == (0, converted.read_bytes())
    assert text == (
        f'{out}: resnet8_cifar from pytorchcv, 10 classes; images of 32 pixels, not resized\n'
    )


def test_convert_takes_a_path_but_no_number_of_classes(converted, tmp_path):
    source, out = converted.with_name('model.safetensors'), tmp_path / 'out.safetensors'
    convert(source, 'resnet8_cifar', out)
    assert out.read_bytes() == converted.read_bytes()
    with pytest.raises(UserError, match='the weights determine num_classes; leave it out'):
        convert(source, 'resnet8_cifar', out, num_classes=10)


def test_convert_with_fields(weights, tmp_path):
    """A network that has no name of its own; the file remembers the fields."""
    source, out = tmp_path / 'model.safetensors', tmp_path / 'out.safetensors'
    safetensors.numpy.save_file(weights.state, source)
    assert convert(str(source), 'resnet8_cifar', out, **weights.fields).fields == weights.fields
    assert load_weights(out)[1]['params']['head']['kernel'].shape == (16, 10)
    (tmp_path / 'net.caffemodel').write_bytes(b'\n\x05SENet')  # its name, which comes first
    for source in ('hub:timm/resnet50.a1_in1k', str(tmp_path / 'net.caffemodel')):
        with pytest.raises(UserError, match='determines its network; it does not accept width'):
            convert(source, 'se_resnet50', out, width=4)


def test_evaluate(weights, tmp_path, capsys):
    """Against the loss and accuracy of the logits, computed here from the pixels."""
    variables = weights.variables
    dataset = open_dataset(DATA, 'eval')
    path = tmp_path / 'w.safetensors'
    fields = {'fields': weights.fields, 'class_names': dataset.class_names}
    save_weights(path, 'resnet8_cifar', variables, VIEW, **fields)
    code, text, _ = run(capsys, 'evaluate', '--weights', path, '--data', DATA)
    assert code == 0

    pixels = np.stack([decode(dataset.read(i)[0]) for i in range(len(dataset))])
    labels = np.array([dataset.read(i)[1] for i in range(len(dataset))])
    images = (pixels - np.float32(VIEW.mean)) / np.float32(VIEW.std)
    model = create_model('resnet8_cifar', **weights.fields)
    log_p = np.asarray(jax.nn.log_softmax(jax.jit(model.apply)(variables, images)))
    rank = (log_p > log_p[np.arange(len(labels)), labels, None]).sum(1)
    loss = -log_p[np.arange(len(labels)), labels].mean()
    said, images, _, *shares = text.splitlines()
    assert said == f'{path}: center crop of 28 pixels (resize none)'
    assert images == f'2,000 images of {DATA}, loss {loss:.4f}'
    for line, k in zip(shares, (1, 5), strict=True):
        assert line.startswith(f'top-{k}  {100 * (rank >= k).mean():.2f} %  ')
        assert line.endswith(f' {100 * (rank < k).mean():.2f} %')


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    return path


def test_predict_calls_unnamed_classes_by_number(converted, image, capsys):
    code, text, _ = run(capsys, 'predict', '--weights', converted, image)
    pixels = cv2.imread(str(image))[..., ::-1].astype(np.float32) / 255
    # pytorchcv's mean and standard deviation for CIFAR.
    mean, std = np.float32([0.4914, 0.4822, 0.4465]), np.float32([0.2023, 0.1994, 0.2010])
    name, variables = load_weights(converted)
    logits = jax.jit(create_model(name).apply)(variables, ((pixels - mean) / std)[None])[0]
    p = np.asarray(jax.nn.softmax(logits))
    lines = [line.split() for line in text.splitlines()]
    assert code == 0
    assert lines[0] == [str(image)]
    order = np.argsort(-p)[:5]
    assert lines[1:] == [['class', str(i), f'{100 * p[i]:.2f}', '%'] for i in order]


def test_mistakes_are_told_in_a_line(converted, image, tmp_path, capsys, weights):
    (tmp_path / 'bad.safetensors').write_bytes(converted.read_bytes()[:-1])
    bad, out = tmp_path / 'bad.safetensors', tmp_path / 'out.safetensors'
    named = tmp_path / 'named.safetensors'
    names = {'class_names': [f'c{i}' for i in range(10)], 'fields': weights.fields}
    save_weights(named, 'resnet8_cifar', weights.variables, VIEW, **names)
    odd = tmp_path / 'odd.safetensors'
    view = VIEW._replace(interpolation='nicest')
    save_weights(odd, 'resnet8_cifar', weights.variables, view, fields=weights.fields)
    three = tmp_path / 'three.safetensors'
    flat = weights.flat_variables('resnet8_cifar', 3, **weights.fields)
    variables = unflatten_dict(flat, sep='/')
    save_weights(three, 'resnet8_cifar', variables, VIEW, fields=weights.fields)
    source = converted.with_name('model.safetensors')
    for arguments, message in [
        (['predict', '--weights', bad, image], f'{bad} is not a safetensors file: '),
        (
            ['predict', '--weights', source, image],
            f'{source} does not name its network; if it comes from a public code base, convert it: '
            f'se-flax convert {source} --model ',
        ),
        (['predict', '--weights', converted, tmp_path / 'no.png'], 'no image '),
        (['predict', '--weights', odd, image], "unknown interpolation 'nicest': "),
        (['evaluate', '--data', DATA], 'nothing to evaluate; give --workdir DIR or --weights FILE'),
        (
            ['evaluate', '--weights', converted, '--weights', three, '--data', DATA],
            f'{DATA} has 10 classes, {three} has 3',
        ),
        (['evaluate', '--weights', converted], 'a weights file names no data set; set --data'),
        (
            ['evaluate', '--weights', named, '--data', DATA],
            f'the 10 classes of {DATA} differ from the 10 of {named}, first in number 0: '
            "'T-shirt/top' instead of 'c0'",
        ),
        (
            ['convert', source, '--out', out],
            f'{source} does not name its network; add --mo',
        ),
        (['convert', tmp_path, '--model', 'vgg16', '--out', out], 'a run holds one network; leave'),
        (['convert', tmp_path, '--key', 'ema', '--out', out], 'a run holds one network; leave'),
        (['convert', tmp_path, '--out', tmp_path / 'no/x.safetensors'], 'cannot write '),
        (['convert', tmp_path, '--out', 'x.pth'], 'unknown kind of weights file'),
        (['convert', source, '--model', 'vgg16', '--out', 'x.pth'], 'unknown kind of weights file'),
        (
            ['convert', source, '--model', 'vgg16', '--out', tmp_path / 'no/x.safetensors'],
            'cannot write ',
        ),
    ]:
        code, text, error = run(capsys, *arguments)
        assert (code, text) == (2, ''), arguments
        assert error.startswith(f'error: {message}'), error
        assert error.count('\n') == 1
    assert not out.exists()


def test_predict_takes_a_workdir_or_weights(image, capsys):
    for arguments in ([], ['--workdir', 'a', '--weights', 'b']):
        with pytest.raises(SystemExit):
            cli.main(['predict', *arguments, str(image)])
        assert '--weights' in capsys.readouterr().err


def test_what_is_compiled_is_kept_where_nobody_said_otherwise(converted, home):
    jax.config.update('jax_compilation_cache_dir', '/elsewhere')
    open_weights(converted)
    assert jax.config.jax_compilation_cache_dir == '/elsewhere'
    jax.config.update('jax_compilation_cache_dir', None)
    open_weights(converted)
    assert jax.config.jax_compilation_cache_dir == str(home / '.cache' / 'se_flax')
