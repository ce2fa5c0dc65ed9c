"""ResNets of both lineages against timm, torchvision and pytorchcv."""

from functools import partial

import jax.numpy as jnp
import pytest
import timm
import torch
from pytorchcv.model_provider import get_model as pytorchcv_model
from pytorchcv.models.resnet_cifar import get_resnet_cifar
from pytorchcv.models.senet import SENet
from pytorchcv.models.seresnet import get_seresnet
from pytorchcv.models.seresnet_cifar import get_seresnet_cifar
from pytorchcv.models.seresnext import SEResNeXt
from timm.models import resnet as timm_resnet
from timm.models import senet
from torchvision import models as tv

from se_flax.models import create_model, list_models, model_info
from se_flax.weights import from_torch

from .compare import cases, check, check_logits, check_training, enliven, without_se

nn = torch.nn
# As the weights' own code base has it, so that `from_torch` takes them.
PADDED = {'pool': 'padded'}
PADDED_3X3 = {'pool': 'padded', 'stride_in': '3x3'}
ONE_EACH = {'stage_sizes': (1, 1, 1, 1)}
LARGE, SMALL = (97, 64), (64, 33)


def pytorchcv(net):
    """Any image size, as all others have it."""
    if isinstance(net, str):
        net = pytorchcv_model(net)
    net.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return net


def caffe_pool(net):
    """Caffe's pool in place of a padded one."""
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    if hasattr(net, 'features'):
        net.features.init_block.pool = pool
    else:
        net.maxpool = pool
    return net


def caffe(net):
    """Caffe's pool and stride in place of torchvision's."""
    for layer in (net.layer2, net.layer3, net.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return caffe_pool(net)


def cadene(block, stage_sizes, groups, **fields):
    return senet.SENet(
        block,
        stage_sizes,
        groups=groups,
        reduction=16,
        inplanes=64,
        input_3x3=False,
        downsample_kernel_size=1,
        downsample_padding=0,
        **fields,
    )


@pytest.mark.parametrize(
    ('name', 'make', 'fields', 'sizes'),
    cases(
        ('resnet18', lambda: caffe_pool(tv.resnet18()), PADDED, LARGE),
        ('resnet34', lambda: caffe_pool(tv.resnet34()), PADDED, SMALL),
        ('resnet50', lambda: caffe(tv.resnet50()), PADDED_3X3, LARGE),
        ('resnet101', lambda: caffe(tv.resnet101()), PADDED_3X3, SMALL),
        ('resnet152', lambda: caffe(tv.resnet152()), PADDED_3X3, SMALL),
        ('resnext50_32x4d', lambda: caffe_pool(tv.resnext50_32x4d()), PADDED, SMALL),
        ('resnext101_64x4d', lambda: caffe_pool(tv.resnext101_64x4d()), PADDED, SMALL),
    ),
)
def test_plain_networks_are_torchvisions_in_caffe_form(name, make, fields, sizes):
    check(name, make(), fields, sizes)


@pytest.mark.slow
def test_resnext101_32x4d_is_timms_with_caffes_pool():
    check('resnext101_32x4d', caffe_pool(timm.create_model('resnext101_32x4d')), PADDED)


@pytest.mark.parametrize(('name', 'blocks'), cases(('se_resnet18', 18), ('se_resnet34', 34)))
def test_se_basic_networks_are_pytorchcvs_with_caffes_pool(name, blocks):
    check(name, caffe_pool(pytorchcv(get_seresnet(blocks))), PADDED)


@pytest.mark.parametrize(
    ('name', 'theirs', 'sizes'),
    cases(
        ('se_resnet50', 'legacy_seresnet50', LARGE),
        ('se_resnet101', 'legacy_seresnet101', SMALL),
        ('se_resnet152', 'legacy_seresnet152', SMALL),
        ('se_resnext50_32x4d', 'legacy_seresnext50_32x4d', SMALL),
        ('se_resnext101_32x4d', 'legacy_seresnext101_32x4d', SMALL),
        ('senet154', 'legacy_senet154', SMALL),
        ('timm_legacy_seresnet18', 'legacy_seresnet18', SMALL),
        ('timm_legacy_seresnet34', 'legacy_seresnet34', SMALL),
        ('timm_legacy_seresnext26_32x4d', 'legacy_seresnext26_32x4d', SMALL),
        ('timm_seresnet18', 'seresnet18', SMALL),
        ('timm_seresnet34', 'seresnet34', SMALL),
        ('timm_seresnet50', 'seresnet50', LARGE),
        ('timm_seresnet101', 'seresnet101', SMALL),
        ('timm_seresnet152', 'seresnet152', SMALL),
        ('timm_seresnext50_32x4d', 'seresnext50_32x4d', SMALL),
        ('timm_resnext101_32x4d', 'resnext101_32x4d', SMALL),
        ('timm_seresnext101_32x4d', 'seresnext101_32x4d', SMALL),
        ('timm_resnext101_32x8d', 'resnext101_32x8d', SMALL),
        ('timm_seresnext101_32x8d', 'seresnext101_32x8d', SMALL),
        ('timm_seresnext101_64x4d', 'seresnext101_64x4d', SMALL),
        ('timm_senet154', 'senet154', SMALL),
        ('timm_seresnext26d_32x4d', 'seresnext26d_32x4d', SMALL),
        ('timm_resnet152d', 'resnet152d', SMALL),
        ('timm_seresnet152d', 'seresnet152d', SMALL),
        ('timm_seresnext101d_32x8d', 'seresnext101d_32x8d', SMALL),
        ('timm_seresnextaa101d_32x8d', 'seresnextaa101d_32x8d', (64, 34)),  # no odd map
        ('timm_resnetrs101', 'resnetrs101', SMALL),
        ('timm_resnetrs152', 'resnetrs152', SMALL),
    ),
)
def test_networks_are_timms(name, theirs, sizes):
    check(name, timm.create_model(theirs), sizes=sizes)


@pytest.mark.parametrize(
    ('name', 'sizes'),
    [
        ('timm_seresnext26t_32x4d', (33,)),
        ('senet154', SMALL),
        ('timm_resnetrs50', SMALL),
        ('timm_seresnextaa101d_32x8d', (64,)),
        *(
            pytest.param(name, (64,), marks=pytest.mark.slow)
            for name in (
                *('timm_resnetrs200', 'timm_resnetrs270', 'timm_resnetrs350', 'timm_resnetrs420'),
                'timm_seresnextaa201d_32x8d',
            )
        ),
    ],
)
def test_each_stage_is_timms(name, sizes):
    theirs = 'legacy_senet154' if name == 'senet154' else name.removeprefix('timm_')
    net = timm.create_model(theirs, layers=(1, 1, 1, 1))
    check(name, net, sizes=sizes, **ONE_EACH)


LATER = [n for p in ('*resnetrs*', '*d_32x?d', '*26t_32x4d', '*152d') for n in list_models(p)]


@pytest.mark.parametrize('name', LATER)
def test_later_networks_have_timms_number_of_parameters(name):
    net = timm.create_model(name.removeprefix('timm_'), device='meta')
    assert model_info(name).params == sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.slow
def test_senet154_trunk_is_timms_without_se():
    check('senet154_trunk', without_se(timm.create_model('legacy_senet154'), senet.SEModule))


@pytest.mark.slow
def test_se_resnext101_64x4d_is_of_timms_class():
    net = cadene(senet.SEResNeXtBottleneck, (3, 4, 23, 3), 64)
    check('se_resnext101_64x4d', net)


@pytest.mark.slow
def test_resnext101_32x48d_is_of_others_classes():
    """With one unit a stage; in full they have 0.8 G parameters."""
    bottleneck = timm_resnet.Bottleneck
    net = timm_resnet.ResNet(bottleneck, (1, 1, 1, 1), cardinality=32, base_width=48)
    check('timm_resnext101_32x48d', net, sizes=(33,), **ONE_EACH)
    check('resnext101_32x48d', caffe_pool(net), PADDED, **ONE_EACH)
    channels = [[256], [512], [1024], [2048]]
    net = pytorchcv(SEResNeXt(channels, 64, cardinality=32, bottleneck_width=48))
    check('se_resnext101_32x48d', caffe_pool(net), PADDED, **ONE_EACH)


@pytest.mark.parametrize(
    ('name', 'theirs'),
    cases(
        ('timm_resnet18', 'resnet18'),
        ('timm_resnet34', 'resnet34'),
        ('timm_resnet50', 'resnet50'),
        ('timm_resnet101', 'resnet101'),
        ('timm_resnet152', 'resnet152'),
        ('timm_resnext50_32x4d', 'resnext50_32x4d'),
        ('timm_resnext101_32x8d', 'resnext101_32x8d'),
        ('timm_resnext101_64x4d', 'resnext101_64x4d'),
    ),
)
def test_timm_networks_are_torchvisions(name, theirs):
    check(name, getattr(tv, theirs)())


@pytest.mark.parametrize(
    ('name', 'theirs', 'both'),
    cases(
        ('resnet18', 'resnet18', PADDED),
        ('resnet50', 'resnet50', PADDED),
        ('resnet50', 'resnet50b', PADDED_3X3),
        ('resnext50_32x4d', 'resnext50_32x4d', PADDED),
        ('se_resnet50', 'seresnet50', PADDED),
        ('se_resnet50', 'seresnet50b', PADDED_3X3),
        ('se_resnext50_32x4d', 'seresnext50_32x4d', PADDED),
        ('se_resnext101_64x4d', 'seresnext101_64x4d', PADDED),
    ),
)
def test_networks_with_padded_pool_are_pytorchcvs(name, theirs, both):
    check(name, pytorchcv(theirs), sizes=(33,), **both)


@pytest.mark.slow
def test_senet154_with_padded_pool_is_pytorchcvs():
    check('senet154', pytorchcv('senet154'), sizes=(33,), **PADDED)


@pytest.mark.parametrize(
    ('name', 'depth'),
    cases(
        ('resnet8_cifar', 8),
        ('resnet14_cifar', 14),
        ('resnet20_cifar', 20),
        ('resnet32_cifar', 32),
        ('resnet44_cifar', 44),
        ('resnet56_cifar', 56),
        ('resnet110_cifar', 110),
        ('se_resnet8_cifar', 8),
        ('se_resnet14_cifar', 14),
        ('se_resnet20_cifar', 20),
        ('se_resnet32_cifar', 32),
        ('se_resnet44_cifar', 44),
        ('se_resnet56_cifar', 56),
        ('se_resnet110_cifar', 110),
    ),
)
def test_cifar_networks_are_pytorchcvs(name, depth):
    make = get_seresnet_cifar if name.startswith('se_') else get_resnet_cifar
    sizes = (16, 21) if depth == 20 else (21,)
    check(name, pytorchcv(make(10, depth, bottleneck=False)), sizes=sizes)


def test_the_comparison_tells_the_lineages_apart():
    """They differ in nothing but a stride or the place of a pool's windows."""
    net = enliven(timm.create_model('legacy_seresnet18'), 97)
    variables = from_torch('timm_legacy_seresnet18', net.state_dict())
    model = create_model('timm_legacy_seresnet18', pool='padded')
    with pytest.raises(AssertionError):
        check_logits(model, variables, net, 97, jit=False)


def small_timm(name, **fields):
    net = timm.create_model(name, layers=(1, 2), channels=(64, 128), **fields)
    net.layer3 = net.layer4 = nn.Identity()
    return net


def small_cadene():
    net = cadene(senet.SEResNeXtBottleneck, (1, 2, 1, 1), 8, drop_rate=0)
    net.layer3 = net.layer4 = nn.Identity()
    net.last_linear = nn.Linear(512, 1000)
    return net


def small_senet():
    net = SENet([[256], [512]], 128, cardinality=16, bottleneck_width=4)
    net.output.dropout.p = 0
    return pytorchcv(net)


@pytest.mark.parametrize(
    ('name', 'make', 'fields'),
    [
        ('se_resnext50_32x4d', small_cadene, {'groups': 8}),
        ('timm_seresnet18', partial(small_timm, 'seresnet18'), {}),
        (
            'timm_seresnextaa101d_32x8d',
            partial(small_timm, 'seresnextaa101d_32x8d', cardinality=8),
            {'groups': 8},
        ),
        ('senet154', small_senet, {'stage_sizes': (1, 1), 'groups': 16, 'dropout': 0.0, **PADDED}),
    ],
)
def test_networks_train_alike(name, make, fields):
    """Two stages of few groups, with each kind of unit, stem, projection and SE."""
    fields = {'stage_sizes': (1, 2)} | fields
    model = create_model(name, dtype=jnp.float64, **fields)
    check_training(model, partial(from_torch, name, **fields), enliven(make(), 32), 32)
