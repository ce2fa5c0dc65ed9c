"""Networks in ONNX Runtime against the same in JAX; the files against the rules of ONNX."""

import collections
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from se_flax import cli, create_model, list_models, nn
from se_flax.errors import UserError
from se_flax.export import export_onnx, save_exported
from se_flax.inference import open_onnx, open_weights
from se_flax.weights import Preprocessing, save_weights

from .models.network_test import random_variables

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

MEAN, STD = (120.0, 121.0, 122.0), (60.0, 61.0, 62.0)
ROUNDING = 1e-4  # of the largest logit; fifty layers of float32 in another order make 2e-5
SHALLOW = {'stage_sizes': (1, 1, 1, 1), 'width': 32}
THREE = {'stage_sizes': (1, 1, 2)}
NETWORKS = {  # a small one of each kind, and sizes of its images, of which the odd ones are NCHW
    'se_resnet50': ((64, 75), SHALLOW),
    'senet154': ((64,), SHALLOW),
    'timm_seresnextaa101d_32x8d': ((75,), SHALLOW),
    'regnet_y_200mf': ((64,), {'stage_sizes': (1, 1, 1, 1)}),
    'se_resnet20_cifar': ((21,), THREE),
    'se_vgg16': ((75,), {'width': 16}),
    'se_bn_inception': ((64,), {}),
    'se_inception_resnet_v2': ((75,), THREE),
    'se_mobilenet': ((75,), {}),
    'se_shufflenet': ((64,), THREE),
    'se_preact_resnet164': ((32,), THREE),
    'se_shake_shake26_2x96d': ((32,), THREE | {'width': 32}),
    'mobilenet_v3_small': ((75,), {'stage_sizes': (1, 1, 1, 1, 2)}),
    # Its padding depends on whether a size is even.
    'timm_tf_mobilenetv3_small_100': ((64, 75), {'stage_sizes': (1, 1, 1, 1, 1)}),
    'efficientnet_b0': ((75,), {'stage_sizes': (1, 1, 1, 1, 1, 1, 1)}),
    'efficientnet_v2_s': ((64,), {'stage_sizes': (1, 1, 1, 1, 1, 2)}),
}


def random_images(*shape):
    return np.random.default_rng(1).integers(256, size=shape, dtype=np.uint8)


def normalized(images):
    return (images.astype('f') - np.float32(MEAN)) / np.float32(STD)


def session_of(exported):
    return onnxruntime.InferenceSession(exported.SerializeToString())


def run(exported, images):
    return session_of(exported).run(None, {'images': images})[0]


def kinds(exported):
    return collections.Counter(node.op_type for node in exported.graph.node)


def exported_network(name, size, fields, **options):
    model = create_model(name, 10, **fields)
    variables = random_variables(model, 96, 'f')
    return model, variables, export_onnx(model, variables, size, mean=MEAN, std=STD, **options)


def test_the_table_has_every_family():
    assert {type(create_model(name)) for name in list_models()} == {
        type(create_model(name)) for name in NETWORKS
    }


@pytest.mark.parametrize('name', NETWORKS)
def test_logits_are_those_of_jax(name):
    sizes, fields = NETWORKS[name]
    model = create_model(name, 10, **fields)
    variables = random_variables(model, 96, 'f')
    for size in sizes:
        nchw = size % 2 == 1
        exported = export_onnx(model, variables, size, mean=MEAN, std=STD, nchw=nchw)
        images = random_images(3, size, size, 3)
        want = jax.jit(model.apply)(variables, normalized(images))
        given = normalized(images).transpose(0, 3, 1, 2) if nchw else images
        session = session_of(exported)
        got, one = (session.run(None, {'images': x})[0] for x in (given, given[1:2]))
        np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING * np.abs(want).max())
        np.testing.assert_allclose(one, got[1:2], rtol=1e-4, atol=1e-5)


def test_a_hard_sigmoid_is_one_node():
    _, _, exported = exported_network('mobilenet_v3_small', 64, {'stage_sizes': (1,) * 5})
    count = kinds(exported)
    assert (count['HardSigmoid'], count['Min']) == (13, 0)  # 9 activations, 4 blocks of SE


def test_another_function_of_that_name_is_not(monkeypatch):
    @jax.jit
    def hard_sigmoid(x):  # TensorFlow's old one
        return jnp.clip(0.2 * x + 0.5, 0, 1)

    monkeypatch.setitem(nn.EXCITE, 'hard_sigmoid', hard_sigmoid)
    fields = {'stage_sizes': (1,), 'se': {'excite': 'hard_sigmoid'}}
    model, variables, exported = exported_network('se_resnet8_cifar', 32, fields)
    images = random_images(2, 32, 32, 3)
    want = jax.jit(model.apply)(variables, normalized(images))
    np.testing.assert_allclose(run(exported, images), want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', [n for n in list_models() if not re.search(r'101|152|aa201|rs[234]|\dgf', n)]
)
def test_every_network_is_converted(name):
    size = {'se_inception_resnet_v2': 96, 'inception_resnet_v2': 96}.get(name, 64)
    model, variables, exported = exported_network(name, size, {})
    images = random_images(2, size, size, 3)
    want = jax.jit(model.apply)(variables, normalized(images))
    atol = ROUNDING * np.abs(want).max()
    np.testing.assert_allclose(run(exported, images), want, rtol=0, atol=atol)


@pytest.mark.parametrize(
    'se',
    [
        *({'squeeze': 'max'}, {'squeeze': None}, {'excite': 'tanh'}, {'excite': 'relu'}),
        {'use_bias': False},
    ],
)
def test_every_choice_of_the_block(se):
    model, variables, exported = exported_network(
        'se_resnet8_cifar', 16, {'se': {'reduction': 4} | se}, nchw=True
    )
    images = normalized(random_images(3, 16, 16, 3))
    want = model.apply(variables, images)
    got = run(exported, images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING * np.abs(want).max())


def test_a_network_at_its_start_whose_statistics_are_all_equal():
    model = create_model('se_resnet8_cifar')
    images = normalized(random_images(2, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    exported = export_onnx(model, variables, 16, mean=MEAN, std=STD, nchw=True)
    want = model.apply(variables, images)
    got = run(exported, images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING * np.abs(want).max())
    assert kinds(exported)['Mul'] == 3  # the gates


@pytest.mark.parametrize('fields', [{'num_classes': 0}, {'in_channels': 1}, {'folded': True}])
def test_heads_channels_and_folded_networks(fields):
    model = create_model('se_resnet8_cifar', **fields)
    variables = random_variables(model, 16, 'f')
    pixels = {'mean': MEAN[: model.in_channels], 'std': STD[: model.in_channels]}
    exported = export_onnx(model, variables, 16, nchw=True, **pixels)
    images = normalized(random_images(2, 16, 16, 3))[..., : model.in_channels]
    want = model.apply(variables, images)
    got = run(exported, images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING * np.abs(want).max())


def test_maps_stay_channels_first_and_batch_norm_is_in_the_kernels():
    *_, exported = exported_network('se_resnet50', 64, SHALLOW, nchw=True)
    assert kinds(exported) == {
        'Conv': 1 + 4 * 4 + 4 * 2,  # stem, four units with a projection, two layers of each SE
        'Relu': 1 + 4 * 3 + 4,
        'MaxPool': 1,
        'GlobalAveragePool': 4 + 1,
        'Sigmoid': 4,
        'Mul': 4,
        'Add': 4,
        'Reshape': 1,
        'Gemm': 1,
    }
    pooled = next(i for i, n in enumerate(exported.graph.node) if n.op_type == 'GlobalAveragePool')
    block = [node.op_type for node in exported.graph.node[pooled : pooled + 6]]
    assert block == ['GlobalAveragePool', 'Conv', 'Relu', 'Conv', 'Sigmoid', 'Mul']


def test_one_transpose_of_the_images_and_none_between_layers():
    *_, exported = exported_network('se_mobilenet', 64, {})
    assert kinds(exported)['Transpose'] == 1
    assert [node.op_type for node in exported.graph.node[:4]].count('Transpose') == 1


READER = """
import sys
import numpy as np, onnxruntime

path, images, logits = sys.argv[1:]
session = onnxruntime.InferenceSession(path)
np.save(logits, session.run(None, {session.get_inputs()[0].name: np.load(images)})[0])
assert not {'se_flax', 'jax', 'flax', 'onnx'} & set(sys.modules)
"""


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A weights file, its network and its variables."""
    model = create_model('se_resnet8_cifar')
    variables = random_variables(model, 28, 'f')
    path = tmp_path_factory.mktemp('weights') / 'network.safetensors'
    view = Preprocessing(28, 32, 'bicubic', MEAN, STD)
    save_weights(path, 'se_resnet8_cifar', variables, view)
    return path, model, variables


@pytest.mark.parametrize('layout', ['nhwc', 'nchw'])
def test_on_the_command_line(layout, weights, tmp_path, capsys):
    path, model, variables = weights
    out = tmp_path / 'mine.onnx'
    command = ['export', '--weights', str(path), '--format', 'onnx', '--out', str(out)]
    assert cli.main([*command, '--input', layout, '--opset', '15']) == 0
    images = {'nhwc': 'uint8[b,28,28,3]', 'nchw': 'float32[b,3,28,28], normalized'}[layout]
    assert capsys.readouterr().out == (
        f'{out}: {path} in ONNX, opset 15; images {images}, RGB, resized to 32 (bicubic); '
        'logits float32[b,10]\n'
    )
    proto = onnx.load(out)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version == 15
    told = {p.key: p.value for p in proto.metadata_props}
    assert (told['network'], told['resize'], told['interpolation']) == (
        'se_resnet8_cifar',
        '32',
        'bicubic',
    )
    images = random_images(4, 28, 28, 3)
    given = images if layout == 'nhwc' else normalized(images).transpose(0, 3, 1, 2)
    np.save(tmp_path / 'images.npy', given)
    files = [out, tmp_path / 'images.npy', tmp_path / 'logits.npy']
    subprocess.run([sys.executable, '-c', READER, *files], check=True)
    want = model.apply(variables, normalized(images))
    got = np.load(tmp_path / 'logits.npy')
    np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING * np.abs(want).max())


def test_evaluate_and_predict_give_the_numbers_of_the_weights(weights, tmp_path, capsys):
    path, *_ = weights
    sources = [('--weights', path)]
    for layout in ('nhwc', 'nchw'):
        out = tmp_path / f'{layout}.onnx'
        command = ['export', '--weights', str(path), '--format', 'onnx', '--out', str(out)]
        assert cli.main([*command, '--input', layout]) == 0
        sources.append(('--onnx', out))
    (tmp_path / 'shirt.png').write_bytes(png())
    without_loss = partial(re.sub, r'loss [\d.]+', '')  # which differs by rounding
    for command in (
        ['evaluate', '--data', 'fashion_mnist_mini', '--crops', '2'],
        ['predict', str(tmp_path / 'shirt.png')],
    ):
        told = []
        for option, file in sources:
            capsys.readouterr()
            assert cli.main([*command, option, str(file)]) == 0
            told.append(without_loss(capsys.readouterr().out.replace(str(file), '')))
        assert told[1:] == told[:1] * 2
    assert open_onnx(str(out)).config.model == open_weights(str(path)).config.model
    assert cli.main(['evaluate', '--data', 'fashion_mnist_mini', '--size=24', f'--onnx={out}']) == 2
    assert capsys.readouterr().err == ('error: images are 24 x 24; the ONNX file takes 28 x 28\n')


def test_a_network_without_a_head_predicts_nothing(tmp_path, capsys):
    model = create_model('se_resnet8_cifar', num_classes=0)
    path, out, image = (tmp_path / name for name in ('w.safetensors', 'w.onnx', 'shirt.png'))
    view = Preprocessing(28, 32, 'bicubic', MEAN, STD)
    save_weights(path, 'se_resnet8_cifar', random_variables(model, 28, 'f'), view)
    command = ['export', '--weights', str(path), '--format', 'onnx', '--out', str(out)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.endswith('logits float32[b,64]\n')
    image.write_bytes(png())
    assert cli.main(['predict', '--onnx', str(out), str(image)]) == 2
    error = f'error: {out} has no classifier head, so it cannot predict\n'
    assert capsys.readouterr().err == error


def png():
    import cv2

    return cv2.imencode('.png', random_images(28, 28, 3))[1].tobytes()


@pytest.mark.parametrize(
    ('rest', 'error'),
    [
        (['--format', 'onxx'], "unknown format 'onxx': did you mean onnx?"),
        (['--format', 'onnx', '--opset', '9'], 'opset=9 must be 13 to '),
        (['--format', 'onnx', '--input', 'nhcw'], "unknown input 'nhcw': did you mean nhwc or"),
        (['--format', 'onnx', '--platforms', 'cpu'], '--platforms is not an option of --format on'),
        (['--opset', '17'], '--opset is not an option of --format stablehlo'),
        (['--format', 'onnx', '--dtype', 'bfloat16'], 'ONNX export is of float32 networks; dtype'),
        (['--format', 'onnx', '--out', 'no/m.onnx'], 'cannot write no/m.onnx: no folder'),
    ],
)
def test_mistakes(rest, error, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ['export', '--weights', str(weights[0]), '--out', 'm.onnx', *rest]
    assert cli.main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: {error}')
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.onnx').write_text('not a network')
    model, variables = weights[1:]
    save_exported('bare.onnx', export_onnx(model, variables, 28, mean=MEAN, std=STD))
    for file, error in (
        ('no.onnx', 'no file no.onnx'),
        ('text.onnx', 'text.onnx cannot be read as ONNX: '),
        ('bare.onnx', 'bare.onnx was not written by `se-flax export --format onnx`'),
    ):
        assert cli.main(['evaluate', '--onnx', file, '--data', 'fashion_mnist_mini']) == 2
        assert capsys.readouterr().err.startswith(f'error: {error}')


def test_static_int8_quantization_runs(tmp_path, capsys):
    from onnxruntime import quantization

    model, variables, exported = exported_network('se_resnet20_cifar', 32, {}, nchw=True)
    images = normalized(random_images(16, 32, 32, 3)).transpose(0, 3, 1, 2)

    class Reader(quantization.CalibrationDataReader):
        batches = iter([{'images': images[:8]}])

        def get_next(self):
            return next(self.batches, None)

    save_exported(tmp_path / 'float.onnx', exported)
    files = tmp_path / 'float.onnx', tmp_path / 'int8.onnx'
    quantization.quantize_static(*files, Reader())
    got = onnxruntime.InferenceSession(files[1]).run(None, {'images': images})[0]
    want = run(exported, images)
    error = np.abs(got - want).max() / np.abs(want).max()
    with capsys.disabled():
        print(f' int8 logits differ by {100 * error:.1f} % of the largest')
    assert error < 0.5  # it is the same network


def test_an_operation_without_a_rule_is_named():
    from se_flax.onnx import to_onnx

    images = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    with pytest.raises(UserError, match='no rule for cumsum'):
        to_onnx(lambda x: jnp.cumsum(x, 1).mean((1, 2)), images, nchw=True, opset=17, metadata={})


def test_other_windows_are_converted_or_refused():
    from se_flax.onnx import to_onnx

    shape = jax.ShapeDtypeStruct((1, 9, 9, 3), jnp.float32)
    images = normalized(random_images(2, 9, 9, 3))
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype('f')

    def convert(function):
        return to_onnx(function, shape, nchw=True, opset=17, metadata={})

    def conv(x, **dilation):
        names = ('NHWC', 'HWIO', 'NHWC')
        y = lax.conv_general_dilated(
            x, kernel, (1, 1), [(2, 2)] * 2, dimension_numbers=names, **dilation
        )
        return y.mean((1, 2))

    dilated = partial(conv, rhs_dilation=(2, 2))
    got = run(convert(dilated), images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(got, dilated(images), rtol=1e-4, atol=1e-5)
    window = partial(lax.reduce_window, init_value=-jnp.inf, computation=lax.max)
    window = partial(window, window_strides=(1, 1, 1, 1), padding='VALID')
    wide = partial(window, window_dimensions=(1, 2, 2, 1), window_dilation=(1, 2, 2, 1))
    for function, error in (
        (partial(conv, lhs_dilation=(2, 2)), 'not transposed'),
        (wide, 'without dilation'),
        (partial(window, window_dimensions=(1, 1, 1, 3)), 'over height and width'),
        (lambda x: jnp.concatenate([x, jnp.zeros_like(x)], -1), 'no constants'),
        (lambda x: lax.fori_loop(0, 3, lambda _, x: 2 * x, x), 'no rule for scan'),
    ):
        with pytest.raises(UserError, match=error):
            convert(function)


@pytest.mark.parametrize('equation', ['ih,bhwc->biwc', 'bhwc,bhwd->bcd'])
def test_products_of_maps(equation):
    from se_flax.onnx import to_onnx

    weights = np.random.default_rng(0).normal(size=(5, 4)).astype('f')
    first = [weights] if equation.startswith('ih') else []

    def product(x):
        return jnp.einsum(equation, *(first or [x]), x)

    shape = jax.ShapeDtypeStruct((1, 4, 6, 3), jnp.float32)
    exported = to_onnx(product, shape, nchw=True, opset=17, metadata={})
    images = normalized(random_images(1, 4, 6, 3))
    got = run(exported, images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(got, product(images), rtol=1e-4, atol=1e-4)  # float32


def test_stock_operations_have_no_choice_by_platform():
    model = create_model('se_resnet50', **SHALLOW)
    variables, x = random_variables(model, 96, 'f'), np.ones((1, 64, 64, 3), 'f')

    def text():
        return str(jax.make_jaxpr(lambda x: model.apply(variables, x))(x))

    assert 'platform_index' in text()
    with nn.stock_operations():
        assert 'platform_index' not in text()
    assert 'platform_index' in text()
