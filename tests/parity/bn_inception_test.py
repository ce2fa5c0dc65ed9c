"""BN-Inception against pytorchcv, and with SE against a network written for the test."""

import jax.numpy as jnp
import pytest
import torch
from pytorchcv.model_provider import get_model

from se_flax.models import bn_inception, create_model
from se_flax.weights import from_torch

from .compare import ConvNorms, check_logits, check_training, enliven, se_or_none, to_flax

nn, F = torch.nn, torch.nn.functional

# From the released prototxt: 1x1; 3x3 reduced, 3x3; double 3x3 reduced, a, b; pool, projection.
MODULES = {
    '3a': (64, 64, 64, 64, 96, 96, 'AVE', 32),
    '3b': (64, 64, 96, 64, 96, 96, 'AVE', 64),
    '3c': (0, 128, 160, 64, 96, 96, 'MAX', 0),
    '4a': (224, 64, 96, 96, 128, 128, 'AVE', 128),
    '4b': (192, 96, 128, 96, 128, 128, 'AVE', 128),
    '4c': (160, 128, 160, 128, 160, 160, 'AVE', 128),
    '4d': (96, 128, 192, 160, 192, 192, 'AVE', 128),
    '4e': (0, 128, 192, 192, 256, 256, 'MAX', 0),
    '5a': (352, 192, 320, 160, 224, 224, 'AVE', 128),
    '5b': (352, 192, 320, 192, 224, 224, 'MAX', 128),
}


def caffe_pool(x):
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


class Module(ConvNorms):
    def __init__(self, channels, widths, se):
        super().__init__()
        one, reduce3, three, reduce33, a, b, self.pool, projection = widths
        self.halves = not projection
        stride = 2 if self.halves else 1
        if one:
            self.add('_1x1', channels, one)
        self.add('_3x3_reduce', channels, reduce3)
        self.add('_3x3', reduce3, three, 3, stride)
        self.add('_double3x3_reduce', channels, reduce33)
        self.add('_double3x3_1', reduce33, a, 3)
        self.add('_double3x3_2', a, b, 3, stride)
        if projection:
            self.add('_pool_proj', channels, projection)
        self.channels = one + three + b + (projection or channels)
        self.se = se_or_none(se, self.channels)

    def chain(self, x, *names):
        for name in names:
            x = self.conv_norm(name, x).relu()
        return x

    def forward(self, x):
        maps = [] if self.halves else [self.chain(x, '_1x1')]
        maps.append(self.chain(x, '_3x3_reduce', '_3x3'))
        maps.append(self.chain(x, '_double3x3_reduce', '_double3x3_1', '_double3x3_2'))
        if self.halves:
            maps.append(caffe_pool(x))
        elif self.pool == 'AVE':
            maps.append(self.chain(F.avg_pool2d(x, 3, 1, 1), '_pool_proj'))
        else:
            maps.append(self.chain(F.max_pool2d(x, 3, 1, 1), '_pool_proj'))
        return self.se(torch.cat(maps, 1))


class BNInception(ConvNorms):
    def __init__(self, se):
        super().__init__()
        self.add('1', 3, 64, 7, 2)
        self.add('2_reduce', 64, 64)
        self.add('2', 64, 192, 3)
        channels = 192
        for name, widths in MODULES.items():
            module = Module(channels, widths, se)
            self.add_module(f'inception_{name}', module)
            channels = module.channels
        self.head = nn.Linear(1024, 1000)

    def forward(self, x):
        x = caffe_pool(self.conv_norm('1', x).relu())
        x = self.conv_norm('2_reduce', x).relu()
        x = caffe_pool(self.conv_norm('2', x).relu())
        for name in MODULES:
            x = self.get_submodule(f'inception_{name}')(x)
        return self.head(x.mean((2, 3)))


def test_bn_inception_is_pytorchcvs():
    net = get_model('bninception')
    net.features.final_pool = nn.AdaptiveAvgPool2d(1)
    variables = from_torch('bn_inception', enliven(net, 96).state_dict())
    check_logits(create_model('bn_inception'), variables, net, 96)


@pytest.mark.parametrize('name', ['bn_inception', 'se_bn_inception'])
def test_bn_inception_is_the_released_one(name):
    net = enliven(BNInception(name.startswith('se_')), 128)
    check_logits(create_model(name), to_flax(net.state_dict()), net, 128)


def test_se_bn_inception_trains_alike(monkeypatch):
    """With a module of each kind."""
    for name in MODULES.keys() - {'3a', '3c', '5b'}:
        monkeypatch.delitem(MODULES, name)
        monkeypatch.delitem(bn_inception.MODULES, name)
    model = create_model('se_bn_inception', dtype=jnp.float64)
    check_training(model, to_flax, enliven(BNInception(True), 32), 32)
