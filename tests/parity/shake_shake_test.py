"""Shake-Shake and Shake-Even networks, plain and with SE, against ones written for the test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from se_flax.models import create_model

from .compare import ConvNorms, check_logits, check_training, enliven, se_or_none, to_flax

nn, F = torch.nn, torch.nn.functional


class Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, alpha, beta):
        ctx.beta = beta
        return alpha * a + (1 - alpha) * b

    @staticmethod
    def backward(ctx, gradient):
        return ctx.beta * gradient, (1 - ctx.beta) * gradient, None, None


class Branch(ConvNorms):
    """ReLU-conv-BN-ReLU-conv-BN, or of 1x1, grouped 3x3, 1x1 without the first ReLU."""

    def __init__(self, channels, features, stride, even, se):
        super().__init__()
        self.even = even
        if even:
            self.add('1', channels, features)
            self.add('2', features, features, 3, stride, 4)
            self.add('3', features, features)
        else:
            self.add('1', channels, features, 3, stride)
            self.add('2', features, features, 3)
        self.se = se_or_none(se, features)

    def forward(self, x):
        if self.even:
            y = self.conv_norm('2', self.conv_norm('1', x).relu()).relu()
            return self.se(self.conv_norm('3', y))
        return self.se(self.conv_norm('2', self.conv_norm('1', x.relu()).relu()))


class Unit(ConvNorms):
    def __init__(self, channels, features, stride, even, se, shares):
        super().__init__()
        self.even, self.stride, self.shares = even, stride, shares
        self.projects = channels != features
        self.branch1 = Branch(channels, features, stride, even, se)
        self.branch2 = Branch(channels, features, stride, even, se)
        if self.projects and even:
            self.add('_proj', channels, features, 1, stride)
        elif self.projects:
            self.conv_proj1 = nn.Conv2d(channels, features // 2, 1, bias=False)
            self.conv_proj2 = nn.Conv2d(channels, features // 2, 1, bias=False)
            self.norm_proj = nn.BatchNorm2d(features)

    def shortcut(self, x):
        if not self.projects:
            return x
        if self.even:
            return self.conv_norm('_proj', x)
        x = x.relu()
        # The second path sees the map one pixel further right and down.
        moved = F.pad(x, (1, -1, 1, -1))
        first, second = (F.avg_pool2d(path, 1, self.stride) for path in (x, moved))
        return self.norm_proj(torch.cat([self.conv_proj1(first), self.conv_proj2(second)], 1))

    def forward(self, x):
        alpha, beta = next(self.shares) if self.training else (0.5, 0.5)
        beta = 0.5 if self.even else beta
        y = Mix.apply(self.branch1(x), self.branch2(x), alpha, beta) + self.shortcut(x)
        return y.relu() if self.even else y


class ShakeResNet(ConvNorms):
    """`shares` gives alpha and beta of each unit in training, each [B, 1, 1, 1]."""

    def __init__(self, name, sizes, width, shares):
        super().__init__()
        se, even = name.startswith('se_'), 'even' in name
        channels = 64 if even else 16
        self.even, self.units = even, []
        self.add('_stem', 3, channels, 3)
        for stage, size in enumerate(sizes, start=2):
            for i in range(size):
                self.units.append(f'stage{stage}_block{i + 1}')
                stride = 2 if stage > 2 and i == 0 else 1
                self.add_module(self.units[-1], Unit(channels, width, stride, even, se, shares))
                channels = width
            width *= 2
        self.head = nn.Linear(channels, 100 if even else 10)

    def forward(self, x):
        x = self.conv_norm('_stem', x)
        x = x.relu() if self.even else x
        for unit in self.units:
            x = self.get_submodule(unit)(x)
        return self.head((x if self.even else x.relu()).mean((2, 3)))


def halves():
    while True:
        yield 0.5, 0.5


WIDTHS = {  # channels of the first stage
    **dict.fromkeys(('shake_shake26_2x96d', 'se_shake_shake26_2x96d'), 96),
    **dict.fromkeys(('shake_even29_2x4x64d', 'se_shake_even29_2x4x64d'), 256),
}


@pytest.mark.parametrize('name', WIDTHS)
def test_shake_resnet_is_the_papers(name):
    """Shortened; the depth is in the exact counts of `network_test`."""
    sizes = 2, 1, 1
    net = enliven(ShakeResNet(name, sizes, WIDTHS[name], halves()), 16)
    size = 21 if name.startswith('se_') else 16  # odd and even maps
    model = create_model(name, stage_sizes=sizes)
    check_logits(model, to_flax(net.state_dict()), net, size, jit=False)


@pytest.mark.parametrize('name', ['se_shake_shake26_2x96d', 'se_shake_even29_2x4x64d'])
def test_shake_resnet_trains_alike(name, monkeypatch):
    """Shortened and thin, with the same shares forced on both sides."""
    model = create_model(name, dtype=jnp.float64, stage_sizes=(1, 2), width=64)
    shares = np.random.default_rng(1).uniform(size=(3, 2, 4, 1, 1, 1))
    net = enliven(ShakeResNet(name, (1, 2), 64, halves()), 16)
    theirs, ours = iter(torch.from_numpy(shares)), iter(shares)
    for unit in net.units:
        net.get_submodule(unit).shares = theirs
    monkeypatch.setattr(jax.random, 'uniform', lambda key, shape: jnp.asarray(next(ours)))
    check_training(model, to_flax, net, 16)
    assert next(ours, None) is None
