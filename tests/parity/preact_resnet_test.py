"""Pre-activated and wide ResNets against pytorchcv, and with SE against ones written here."""

import jax.numpy as jnp
import pytest
import torch
from pytorchcv.model_provider import get_model
from pytorchcv.models.wrn_cifar import get_wrn_cifar

from se_flax.models import create_model
from se_flax.weights import from_torch

from .compare import ConvNorms, check_logits, check_training, enliven, se_or_none, to_flax

nn = torch.nn


class Unit(nn.Module):
    """BN-ReLU-conv two or three times; a projection shares the first BN-ReLU."""

    def __init__(self, channels, features, stride, bottleneck, se):
        super().__init__()
        inner = features // 4 if bottleneck else features
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = (channels, *[inner] * (len(kernels) - 1), features)
        self.depth = len(kernels)
        for i, kernel in enumerate(kernels, start=1):
            step = stride if i == 1 else 1
            conv = nn.Conv2d(widths[i - 1], widths[i], kernel, step, kernel // 2, bias=False)
            self.add_module(f'norm{i}', nn.BatchNorm2d(widths[i - 1]))
            self.add_module(f'conv{i}', conv)
        self.conv_proj = None
        if channels != features:
            self.conv_proj = nn.Conv2d(channels, features, 1, stride, bias=False)
        self.se = se_or_none(se, features)

    def forward(self, x):
        activated = y = self.norm1(x).relu()
        y = self.conv1(y)
        for i in range(2, self.depth + 1):
            y = self.get_submodule(f'conv{i}')(self.get_submodule(f'norm{i}')(y).relu())
        return (self.conv_proj(activated) if self.conv_proj else x) + self.se(y)


class PreActResNet(ConvNorms):
    def __init__(self, size, widths, bottleneck, se):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        channels, self.units = 16, []
        for stage, features in enumerate(widths, start=2):
            for i in range(size):
                self.units.append(f'stage{stage}_block{i + 1}')
                stride = 2 if stage > 2 and i == 0 else 1
                unit = Unit(channels, features, stride, bottleneck, se)
                self.add_module(self.units[-1], unit)
                channels = features
        self.norm_final = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        x = self.conv_stem(x)
        for unit in self.units:
            x = self.get_submodule(unit)(x)
        return self.head(self.norm_final(x).relu().mean((2, 3)))


FORMS = {
    'resnet110': ((16, 32, 64), False),
    'resnet164': ((64, 128, 256), True),
    'wrn16_8': ((128, 256, 512), False),
}


@pytest.mark.parametrize(
    ('name', 'form'),
    [
        ('se_preact_resnet110', 'resnet110'),
        ('preact_resnet164', 'resnet164'),
        ('se_preact_resnet164', 'resnet164'),
        ('se_wrn16_8', 'wrn16_8'),
    ],
)
def test_preact_resnet_is_the_papers(name, form):
    """Shortened; the depth is in the exact counts of `network_test`."""
    net = enliven(PreActResNet(2, *FORMS[form], name.startswith('se_')), 16)
    size = 21 if name.startswith('se_') else 16  # odd and even maps
    model = create_model(name, stage_sizes=(2, 2, 2))
    check_logits(model, to_flax(net.state_dict()), net, size, jit=False)


def test_preact_resnets_are_pytorchcvs():
    wide = get_wrn_cifar(num_classes=10, blocks=16, width_factor=8)
    for name, net in (('preact_resnet110', get_model('preresnet110_cifar10')), ('wrn16_8', wide)):
        variables = from_torch(name, enliven(net, 32).state_dict())
        check_logits(create_model(name), variables, net, 32)


@pytest.mark.parametrize(
    ('name', 'form'), [('se_preact_resnet110', 'resnet110'), ('se_preact_resnet164', 'resnet164')]
)
def test_preact_resnets_train_alike(name, form):
    model = create_model(name, dtype=jnp.float64, stage_sizes=(2, 2, 2))
    net = enliven(PreActResNet(2, *FORMS[form], se=True), 16)
    check_training(model, to_flax, net, 16)
