"""MobileNetV3 against torchvision and timm; without SE against theirs without the blocks."""

import jax.numpy as jnp
import pytest
import timm
import torchvision
from torchvision.ops import SqueezeExcitation

from se_flax.models import create_model
from se_flax.weights import from_torch

from .compare import check_logits, check_training, enliven, without_se


def of_torchvision(name):
    plain = name.removesuffix('_no_se')
    net = getattr(torchvision.models, plain)()
    return net if plain == name else without_se(net, SqueezeExcitation)


def of_timm(name):
    return timm.create_model(name.removeprefix('timm_'))


@pytest.mark.parametrize(
    'name',
    [
        'mobilenet_v3_small',
        'mobilenet_v3_large_no_se',
        'timm_mobilenetv3_small_050',
        'timm_tf_mobilenetv3_large_100',
        'timm_tf_mobilenetv3_small_minimal_100',
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                'mobilenet_v3_large',
                'mobilenet_v3_small_no_se',
                'timm_mobilenetv3_large_075',
                'timm_mobilenetv3_large_100',
                'timm_mobilenetv3_small_075',
                'timm_mobilenetv3_small_100',
                'timm_tf_mobilenetv3_large_075',
                'timm_tf_mobilenetv3_large_minimal_100',
                'timm_tf_mobilenetv3_small_075',
                'timm_tf_mobilenetv3_small_100',
            )
        ),
    ],
)
def test_logits(name):
    net = enliven(of_timm(name) if name.startswith('timm_') else of_torchvision(name), 64)
    variables = from_torch(name, net.state_dict())
    for size in (64, 75) if '_tf_' in name else (64,):  # even and odd maps are padded differently
        check_logits(create_model(name), variables, net, size)


@pytest.mark.slow
def test_training_is_torchvisions():
    name = 'mobilenet_v3_small'
    net = enliven(torchvision.models.mobilenet_v3_small(dropout=0.0), 64)
    model = create_model(name, dtype=jnp.float64, dropout=0.0)
    check_training(model, lambda state: from_torch(name, state), net, 64)
