"""ShuffleNet, plain and with SE, against a network written for the test."""

import jax.numpy as jnp
import pytest
import torch

from se_flax.models import create_model

from .compare import ConvNorms, check_logits, check_training, enliven, se_or_none, to_flax

nn, F = torch.nn, torch.nn.functional


class Unit(ConvNorms):
    def __init__(self, channels, features, first_groups, se):
        super().__init__()
        self.halves, inner = channels != features, features // 4
        branch = features - channels if self.halves else features
        self.add('1', channels, inner, groups=first_groups)
        self.add('2', inner, inner, 3, 2 if self.halves else 1, inner)
        self.add('3', inner, branch, groups=3)
        self.se = se_or_none(se, branch, bias=False)

    def forward(self, x):
        y = F.channel_shuffle(self.conv_norm('1', x).relu(), 3)
        y = self.se(self.conv_norm('3', self.conv_norm('2', y)))
        if not self.halves:
            return (x + y).relu()
        return torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1).relu()


class ShuffleNet(ConvNorms):
    def __init__(self, se, sizes):
        super().__init__()
        self.add('_stem', 3, 24, 3, 2)
        channels, self.units = 24, []
        for stage, features, size in zip((2, 3, 4), (240, 480, 960), sizes, strict=True):
            for i in range(size):
                self.units.append(f'stage{stage}_block{i + 1}')
                first_groups = 1 if channels == 24 else 3
                self.add_module(self.units[-1], Unit(channels, features, first_groups, se))
                channels = features
        self.head = nn.Linear(960, 1000)

    def forward(self, x):
        x = F.max_pool2d(self.conv_norm('_stem', x).relu(), 3, 2, 1)
        for unit in self.units:
            x = self.get_submodule(unit)(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize('name', ['shufflenet', 'se_shufflenet'])
def test_shufflenet_is_the_papers(name):
    """Shortened; the depth is in the exact counts of `network_test`."""
    sizes = 2, 1, 1
    net = enliven(ShuffleNet(name.startswith('se_'), sizes), 96)
    size = 97 if name.startswith('se_') else 96
    check_logits(create_model(name, stage_sizes=sizes), to_flax(net.state_dict()), net, size)


def test_se_shufflenet_trains_alike():
    sizes = 1, 2, 1
    model = create_model('se_shufflenet', dtype=jnp.float64, stage_sizes=sizes)
    check_training(model, to_flax, enliven(ShuffleNet(True, sizes), 32), 32)
