"""Names and shapes of public networks, kept as text: each tensor has one place, of its shape.

With PyTorch and the code bases installed the text is held against them; refresh it by
pytest tests/weights/names_test.py --update-golden.
"""

import math

import numpy as np
import pytest

from se_flax.errors import UserError
from se_flax.models import create_model
from se_flax.weights import from_torch
from se_flax.weights.names import NAMINGS, VIEWS
from se_flax.weights.state_dict import detect, find_state_dict, place

NETWORKS = {
    'torchvision_vgg16_bn': ('vgg16', {}),
    'timm_vgg16_bn': ('vgg16', {}),
    'pytorchcv_bn_vgg16': ('vgg16', {}),
    'pytorchcv_bninception': ('bn_inception', {}),
    'timm_inception_resnet_v2': ('inception_resnet_v2', {}),
    'pytorchcv_inceptionresnetv2': ('inception_resnet_v2', {}),
    'pytorchcv_mobilenet_w1': ('mobilenet', {}),
    'pytorchcv_preresnet110_cifar10': ('preact_resnet110', {}),
    'pytorchcv_wrn16_10_cifar10': ('wrn16_8', {'width': 160}),
    'pytorchcv_senet154': ('senet154', {'pool': 'padded'}),
    'pytorchcv_seresnet50': ('se_resnet50', {'pool': 'padded'}),
    'timm_legacy_senet154': ('senet154', {}),
    'timm_senet154': ('timm_senet154', {}),
    'timm_seresnext26t_32x4d': ('timm_seresnext26t_32x4d', {}),
    'timm_resnetrs50': ('timm_resnetrs50', {}),
    'timm_regnety_008': ('timm_regnety_008', {}),
    'torchvision_regnet_y_400mf': ('regnet_y_400mf', {}),
    'torchvision_regnet_x_400mf': ('regnet_x_400mf', {}),
    'torchvision_resnext50_32x4d': ('timm_resnext50_32x4d', {}),
    'torchvision_mobilenet_v3_large': ('mobilenet_v3_large', {}),
    'torchvision_mobilenet_v3_small': ('mobilenet_v3_small', {}),
    'timm_mobilenetv3_large_075': ('timm_mobilenetv3_large_075', {}),
    'timm_tf_mobilenetv3_small_minimal_100': ('timm_tf_mobilenetv3_small_minimal_100', {}),
    'torchvision_efficientnet_b0': ('efficientnet_b0', {}),
    'torchvision_efficientnet_v2_s': ('efficientnet_v2_s', {}),
    'timm_efficientnet_b1': ('efficientnet_b1', {}),
    'timm_tf_efficientnetv2_s': ('timm_tf_efficientnetv2_s', {}),
}
# Alike parameters, but other networks: they must not load.
OTHERS = {
    'pytorchcv_shufflenet_g3_w1': ('shufflenet', {}),
    'pytorchcv_shakeshakeresnet26_2x32d_cifar10': ('shake_shake26_2x96d', {'width': 32}),
    'pytorchcv_sepreresnet110_cifar10': ('se_preact_resnet110', {}),
    'pytorchcv_preresnet164bn_cifar10': ('preact_resnet164', {}),
    'timm_resnet50c': ('timm_resnet152d', {'stage_sizes': (3, 4, 6, 3)}),
    'timm_regnety_008_tv': ('timm_regnety_008', {}),
    'pytorchcv_resnet50': ('resnet50', {'pool': 'caffe', 'stride_in': '1x1'}),
}


def listing(state):
    """A line for each module: its weight's shape, and what else it has."""
    lines = []
    for key, value in state.items():
        module, _, leaf = key.rpartition('.')
        if leaf == 'weight':
            shape = 'x'.join(map(str, value.shape))
            kind = 'norm' if f'{module}.running_mean' in state else 'plain'
            kind = 'bias' if kind == 'plain' and f'{module}.bias' in state else kind
            lines.append(f'{module} {shape} {kind}')
    return '\n'.join(lines) + '\n'


def state_dict(text):
    """What was listed, of zeros that take no memory."""
    state = {}
    for line in text.splitlines():
        module, shape, kind = line.split()
        shape = tuple(map(int, shape.split('x')))
        state[f'{module}.weight'] = np.broadcast_to(np.float32(0), shape)
        if kind != 'plain':
            state[f'{module}.bias'] = np.zeros(shape[:1], np.float32)
        if kind == 'norm':
            state |= {f'{module}.running_{k}': np.zeros(shape, np.float32) for k in ('mean', 'var')}
    return state


def create(network):
    base, _, name = network.partition('_')
    if base == 'timm':
        return pytest.importorskip('timm').create_model(name)
    if 'torchvision_regnet' in network:  # computes its stages by tensors
        with pytest.importorskip('torch').device('cpu'):
            return getattr(pytest.importorskip('torchvision').models, name)()
    if base == 'torchvision':
        return getattr(pytest.importorskip('torchvision').models, name)()
    return pytest.importorskip('pytorchcv.model_provider').get_model(name)


@pytest.mark.parametrize('network', NETWORKS | OTHERS)
def test_names_are_those_of_the_code_base(network, golden):
    torch = pytest.importorskip('torch')
    with torch.device('meta'):
        state = create(network).state_dict()
    golden(f'weights/{network}.txt', listing(state))


def read(request, network):
    path = request.config.rootpath / 'tests' / 'golden' / 'weights' / f'{network}.txt'
    return state_dict(path.read_text())


@pytest.mark.parametrize('network', NETWORKS)
def test_each_tensor_has_one_place_of_its_shape(network, request):
    state = read(request, network)
    name, fields = NETWORKS[network]
    model = create_model(name, **fields)
    naming = detect(name, type(model), state)
    assert naming.lineage == {'timm_legacy_senet154': 'cadene'}.get(network, network.split('_')[0])
    assert place(naming, model, state)[1] == ''


@pytest.mark.parametrize('network', NETWORKS)
def test_prefixes_are_taken_off_and_nothing_of_the_names(network, request, caplog):
    state = read(request, network)
    assert find_state_dict(state).keys() == state.keys()
    assert caplog.messages == []
    for prefix in ('module', 'module._orig_mod', 'features', 'layer1', 'conv1'):
        wrapped = {f'{prefix}.{name}': value for name, value in state.items()}
        assert find_state_dict(wrapped).keys() == state.keys()
        assert caplog.messages.pop() == f'using the {len(state)} tensors under {prefix!r}'


@pytest.mark.parametrize('network', OTHERS)
def test_networks_that_only_look_alike_are_refused(network, request):
    name, fields = OTHERS[network]
    with pytest.raises(UserError, match=r'has names such as|weights do not fit'):
        from_torch(name, read(request, network), **fields)


@pytest.mark.parametrize(
    ('network', 'name'),
    [
        ('torchvision_mobilenet_v3_small', 'timm_mobilenetv3_small_100'),
        ('torchvision_mobilenet_v3_small', 'timm_tf_mobilenetv3_small_100'),
        ('torchvision_efficientnet_v2_s', 'timm_efficientnetv2_s'),
    ],
)
def test_timms_networks_with_another_epsilon_do_not_take_torchvisions_weights(
    network, name, request
):
    with pytest.raises(UserError, match='epsilon of BatchNorm .* use a name without timm_'):
        from_torch(name, read(request, network))


def expected_view(lineage, name):
    """Size, resize, interpolation, mean and std in the code base."""
    if lineage == 'torchvision':
        models = pytest.importorskip('torchvision').models
        weights = models.get_model_weights(name.removeprefix('timm_'))
        of = getattr(weights, 'IMAGENET1K_V1', weights.DEFAULT).transforms()
        size, resize, interpolation = of.crop_size[0], of.resize_size[0], of.interpolation.value
    else:
        of = pytest.importorskip('timm').get_pretrained_cfg(name.removeprefix('timm_'))
        size, interpolation = (of.test_input_size or of.input_size)[-1], of.interpolation
        resize = math.floor(size / of.crop_pct)
    return size, resize, f'{interpolation}_antialias', of.mean, of.std


@pytest.mark.parametrize(('lineage', 'name'), VIEWS)
def test_images_are_those_of_the_code_base(lineage, name):
    network = type(create_model(name))
    of_family = (n for n in NAMINGS if (n.lineage, n.network) == (lineage, network))
    view, (*rest, mean, std) = next(of_family).view(name), expected_view(lineage, name)
    assert view[:3] == tuple(rest)
    np.testing.assert_allclose([view.mean, view.std], [np.multiply(255, v) for v in (mean, std)])
