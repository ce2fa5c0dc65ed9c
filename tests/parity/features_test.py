"""The map of each stride against timm's `features_only`, and its rule for other channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from timm.models import resnet as timm_resnet
from timm.models import vgg as timm_vgg
from timm.models._features import FeatureHookNet

from se_flax.models import create_model, model_info
from se_flax.weights import from_torch

from .compare import FAST_COMPILE, enliven, images, to_torch, widened

ONE_EACH = {'stage_sizes': (1, 1, 1, 1)}


def seresnet(**fields):
    return timm_resnet.ResNet(
        timm_resnet.Bottleneck, (1, 1, 1, 1), block_args={'attn_layer': 'se'}, **fields
    )


def thin_vgg():
    """A quarter as wide, with hidden layers to match; timm's have one width."""
    widths = [width if width == 'M' else width // 4 for width in timm_vgg.cfgs['vgg16']]
    net = timm_vgg.VGG(widths, norm_layer=torch.nn.BatchNorm2d)
    net.pre_logits, net.head.fc = timm_vgg.ConvMlp(128, 1024, 7), torch.nn.Linear(1024, 1000)
    return net


NETWORKS = {
    'timm_seresnet50': (seresnet, ONE_EACH, 65),
    'vgg16': (thin_vgg, {'width': 16}, 64),
    'inception_resnet_v2': (lambda: timm.create_model('inception_resnet_v2'), {}, 97),
    'timm_mobilenetv3_small_050': (lambda: timm.create_model('mobilenetv3_small_050'), {}, 64),
    'efficientnet_b0': (lambda: timm.create_model('efficientnet_b0'), {}, 64),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_maps_are_those_of_timm(name):
    build, fields, size = NETWORKS[name]
    net = enliven(build(), size).eval()
    variables = from_torch(name, net.state_dict(), head='drop', **fields)
    model, x = create_model(name, 0, dtype=jnp.float64, **fields), images(size)
    info = net.feature_info
    with torch.no_grad():
        hooked = FeatureHookNet(net.double(), out_indices=tuple(range(len(info))), out_map=None)
        theirs = [y.movedim(1, -1).numpy() for y in hooked(to_torch(x))]

    def features(variables, x):
        return model.apply(variables, x, method='features')

    with jax.enable_x64():
        ours = jax.jit(features, compiler_options=FAST_COMPILE)(widened(variables), x)
    strides = [feature.stride for feature in model_info(name).features]
    assert strides == [entry['reduction'] for entry in info]
    for got, want in zip(ours.values(), theirs, strict=True):
        # As for logits: `from_torch` puts biases into float32 means.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize('channels', [1, 2, 4, 7])
def test_channels_are_adapted_as_timm_does(channels):
    net = seresnet()
    net.default_cfg = {'first_conv': 'conv1', 'num_classes': 1000, 'classifier': 'fc'}
    want = timm.models.adapt_input_conv(channels, net.conv1.weight.detach().clone())
    name = 'timm_seresnet50'
    variables = from_torch(name, net.state_dict(), in_channels=channels, **ONE_EACH)
    got = variables['params']['conv_stem']['kernel'].transpose(3, 2, 0, 1)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6, atol=1e-7)  # a sum of three


def test_weights_of_other_channels_tell_their_number():
    net = seresnet(in_chans=4)
    variables = from_torch('timm_seresnet50', net.state_dict(), **ONE_EACH)
    assert variables['params']['conv_stem']['kernel'].shape == (7, 7, 4, 64)
