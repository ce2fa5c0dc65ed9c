"""VGG-16 against torchvision and pytorchcv, and with SE against a network written for the test."""

import jax.numpy as jnp
import pytest
import torch
from pytorchcv.model_provider import get_model
from torchvision.models import vgg

from se_flax.models import create_model
from se_flax.weights import from_torch

from .compare import SE, ConvNorms, check_logits, check_training, enliven, to_flax

nn, F = torch.nn, torch.nn.functional

WIDTH = 16  # a quarter of the paper's
WIDTHS = (1, 1, 'M', 2, 2, 'M', *(4,) * 3, 'M', *(8,) * 3, 'M', *(8,) * 3, 'M')


class SEVGG(ConvNorms):
    """Configuration D; SE behind the ReLU of each convolution."""

    def __init__(self):
        super().__init__()
        self.layers, channels, stage, i = [], 3, 1, 0
        for width in WIDTHS:
            if width == 'M':
                self.layers.append(None)
                stage, i = stage + 1, 0
                continue
            width *= WIDTH
            i += 1
            self.layers.append(f'{stage}_{i}')
            self.add(f'{stage}_{i}', channels, width, 3)
            self.add_module(f'se{stage}_{i}', SE(width))
            channels = width
        self.fc6 = nn.Linear(8 * WIDTH * 7 * 7, 64 * WIDTH)
        self.fc7 = nn.Linear(64 * WIDTH, 64 * WIDTH)
        self.head = nn.Linear(64 * WIDTH, 1000)

    def forward(self, x):
        for layer in self.layers:
            if layer is None:
                x = F.max_pool2d(x, 2)
            else:
                x = self.get_submodule(f'se{layer}')(self.conv_norm(layer, x).relu())
        # The map is flattened with its channels last, as se_flax does it.
        x = F.adaptive_avg_pool2d(x, 7).movedim(1, -1).flatten(1)
        return self.head(self.fc7(self.fc6(x).relu()).relu())


def test_vgg16_is_torchvisions():
    """A thin one; the shapes of the paper's are in `names_test`."""
    widths = [width if width == 'M' else width * WIDTH for width in WIDTHS]
    net = vgg.VGG(vgg.make_layers(widths, batch_norm=True), init_weights=False)
    sizes = ((8 * WIDTH * 49, 64 * WIDTH), (64 * WIDTH, 64 * WIDTH), (64 * WIDTH, 1000))
    for i, size in zip((0, 3, 6), sizes, strict=True):
        net.classifier[i] = nn.Linear(*size)
    variables = from_torch('vgg16', enliven(net, 75).state_dict(), width=WIDTH)
    check_logits(create_model('vgg16', width=WIDTH), variables, net, 75)


@pytest.mark.slow
def test_vgg16_is_pytorchcvs():
    net = get_model('bn_vgg16')
    variables = from_torch('vgg16', enliven(net, 224).state_dict())
    check_logits(create_model('vgg16'), variables, net, 224)


def test_se_vgg16_is_the_papers():
    net = enliven(SEVGG(), 96)
    check_logits(create_model('se_vgg16', width=WIDTH), to_flax(net.state_dict()), net, 96)


def test_se_vgg16_trains_alike():
    model = create_model('se_vgg16', width=WIDTH, dtype=jnp.float64, dropout=0.0)
    check_training(model, to_flax, enliven(SEVGG(), 32), 32)
