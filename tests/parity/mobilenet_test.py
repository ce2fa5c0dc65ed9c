"""MobileNet against pytorchcv, and with SE against a network written for the test."""

import jax.numpy as jnp
import torch
from pytorchcv.model_provider import get_model

from se_flax.models import create_model, mobilenet
from se_flax.weights import from_torch

from .compare import SE, ConvNorms, check_logits, check_training, enliven, to_flax

nn = torch.nn

# Channels and stride of the pairs (fact sheet of the paper's Table 1, arXiv 1704.04861).
CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
HALVING = (2, 4, 6, 12)


class Pair(ConvNorms):
    def __init__(self, channels, features, stride):
        super().__init__()
        self.add('_depthwise', channels, channels, 3, stride, channels)
        self.add('_pointwise', channels, features)
        self.se = SE(features, bias=False)

    def forward(self, x):
        x = self.conv_norm('_depthwise', x).relu()
        return self.se(self.conv_norm('_pointwise', x).relu())


class MobileNet(ConvNorms):
    def __init__(self, pairs=13):
        super().__init__()
        self.add('_stem', 3, 32, 3, 2)
        self.pairs = range(1, pairs + 1)
        for i in self.pairs:
            pair = Pair(CHANNELS[i - 1], CHANNELS[i], 2 if i in HALVING else 1)
            self.add_module(f'block{i}', pair)
        self.head = nn.Linear(CHANNELS[pairs], 1000)

    def forward(self, x):
        x = self.conv_norm('_stem', x).relu()
        for i in self.pairs:
            x = self.get_submodule(f'block{i}')(x)
        return self.head(x.mean((2, 3)))


def test_mobilenet_is_pytorchcvs():
    net = get_model('mobilenet_w1')
    net.features.final_pool = nn.AdaptiveAvgPool2d(1)
    variables = from_torch('mobilenet', enliven(net, 96).state_dict())
    check_logits(create_model('mobilenet'), variables, net, 96)


def test_se_mobilenet_is_the_papers():
    net = enliven(MobileNet(), 97)
    check_logits(create_model('se_mobilenet'), to_flax(net.state_dict()), net, 97)


def test_se_mobilenet_trains_alike(monkeypatch):
    """With four pairs of both strides."""
    monkeypatch.setattr(mobilenet, 'PAIRS', mobilenet.PAIRS[:4])
    model = create_model('se_mobilenet', dtype=jnp.float64)
    check_training(model, to_flax, enliven(MobileNet(4), 32), 32)
