"""Inception-ResNet-v2 against timm and pytorchcv; with SE, timm's with the blocks hooked in."""

import jax.numpy as jnp
import pytest
import timm
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from pytorchcv.model_provider import get_model

from se_flax.models import create_model
from se_flax.weights import from_torch

from .compare import SE, check_logits, check_training, enliven, to_flax

nn = torch.nn
SHORT = {'stage_sizes': (1, 1, 2)}  # with the unit that ends the last stage


def short_with_se():
    """Hooks SE behind the mixed modules and the convolution that ends each unit's branch.

    timm scales and adds what that convolution returns.
    """
    net = timm.create_model('inception_resnet_v2')
    for stage in ('repeat', 'repeat_1', 'repeat_2'):
        setattr(net, stage, getattr(net, stage)[:1])
    sites = {
        'mixed_5b': (net.mixed_5b, 320),
        'mixed_6a': (net.mixed_6a, 1088),
        'mixed_7a': (net.mixed_7a, 2080),
        'block35_1': (net.repeat[0].conv2d, 320),
        'block17_1': (net.repeat_1[0].conv2d, 1088),
        'block8_1': (net.repeat_2[0].conv2d, 2080),
        'block8_2': (net.block8.conv2d, 2080),
    }
    net.sites = nn.ModuleDict()
    for name, (module, channels) in sites.items():
        se = SE(channels)
        net.sites[name] = nn.ModuleDict({'se': se})
        module.register_forward_hook(lambda module, args, y, se=se: se(y))
    return net


def to_variables(state):
    trunk = {key: value for key, value in state.items() if not key.startswith('sites.')}
    blocks = {key.removeprefix('sites.'): state[key] for key in state if key not in trunk}
    # timm's `block8` is the last unit of the last stage.
    trunk = {key.replace('block8.', 'repeat_2.1.'): trunk[key] for key in trunk}
    trunk = from_torch('inception_resnet_v2', trunk, **SHORT)
    return unflatten_dict(flatten_dict(trunk) | flatten_dict(to_flax(blocks)))


def test_inception_resnet_v2_is_pytorchcvs():
    net = get_model('inceptionresnetv2')
    net.features.final_pool = nn.AdaptiveAvgPool2d(1)
    variables = from_torch('inception_resnet_v2', enliven(net, 96).state_dict())
    check_logits(create_model('inception_resnet_v2'), variables, net, 96)


def test_se_inception_resnet_v2_scales_branches_and_mixed_modules():
    net = enliven(short_with_se(), 96)
    model = create_model('se_inception_resnet_v2', **SHORT)
    check_logits(model, to_variables(net.state_dict()), net, 96)


@pytest.mark.slow  # half a minute, for operations that BN-Inception and the ResNets have, too
def test_se_inception_resnet_v2_trains_alike():
    model = create_model('se_inception_resnet_v2', dtype=jnp.float64, **SHORT)
    check_training(model, to_variables, enliven(short_with_se(), 75), 75)
