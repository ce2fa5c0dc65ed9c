"""Shake-Shake and Shake-Even networks for CIFAR (arXiv 1705.07485)."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.models.network import Maps
from se_flax.models.registry import PaperResult, register
from se_flax.models.residual import ResidualNetwork, ResidualUnit
from se_flax.nn import SqueezeExcite, relu_of_sum, shake


class ShakeBranch(ResidualUnit):
    """One of a unit's two branches; SE on a branch stands before the random mixing."""

    filters: int
    strides: int


class BasicBranch(ShakeBranch):
    """ReLU, 3x3, ReLU, 3x3: for units that hand on sums without a ReLU."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.layers.conv_norm(1, nn.relu(x), self.filters, 3, self.strides))
        y = self.squeeze_excite('inside_3x3', y)
        return self.squeeze_excite('standard', self.layers.conv_norm(2, y, self.filters, 3))


class BottleneckBranch(ShakeBranch):
    """1x1, grouped 3x3, 1x1, all of `filters` channels (ResNeXt's form C).

    Attributes:
        groups: of the 3x3.
    """

    groups: int = 4

    @nn.compact
    def __call__(self, x):
        conv_norm = self.layers.conv_norm
        y = nn.relu(conv_norm(1, x, self.filters))
        y = nn.relu(conv_norm(2, y, self.filters, 3, self.strides, groups=self.groups))
        y = self.squeeze_excite('inside_3x3', y)
        return self.squeeze_excite('standard', conv_norm(3, y, self.filters))


class ShakeUnit(ResidualUnit):
    """Two branches, mixed at random in training, beside a shortcut.

    Attributes:
        filters: channels out.
        strides: of the map, in both directions.
        branch: makes a branch.
        backward: 'shake' or 'even', see `se_flax.nn.shake`.
        pre_activated: the ReLU stands before the branches, not behind the sum.
        train: mixes at random; needs the PRNG stream `shake`.
    """

    filters: int
    strides: int
    branch: Callable[..., ShakeBranch]
    backward: str
    pre_activated: bool
    train: bool

    @nn.compact
    def __call__(self, x):
        y = self.squeeze_excite('pre', x)
        branch = partial(
            self.branch, self.layers, self.se, self.placement, self.filters, self.strides
        )
        key = self.make_rng('shake') if self.train else None
        y = shake(branch(name='branch1')(y), branch(name='branch2')(y), key, self.backward)
        y += self.squeeze_excite('identity', self.shortcut(x))
        return self.squeeze_excite('post', y if self.pre_activated else relu_of_sum(y))

    def shortcut(self, x):
        if x.shape[-1] == self.filters:
            return x
        if not self.pre_activated:
            return self.layers.conv_norm('_proj', x, self.filters, 1, self.strides)
        x, half, s = nn.relu(x), self.filters // 2, self.strides
        # Two samplings of the map, the second shifted by a pixel to the lower right, so that a
        # stride of 2 does not lose the odd pixels.
        shifted = jnp.pad(x[:, :-1, :-1], ((0, 0), (1, 0), (1, 0), (0, 0)))
        paths = [
            self.layers.conv(half, 1, s, name=f'conv_proj{i}')(path)
            for i, path in enumerate((x, shifted), start=1)
        ]
        return self.layers.norm(name='norm_proj')(jnp.concatenate(paths, -1))


class ShakeResNet(ResidualNetwork):
    """Shake-Shake network for 32x32 images: three stages behind a 3x3 stem.

    In training it needs the PRNG stream `shake`, with which each image of each unit draws its own
    mixture. See `Network` and `ResidualNetwork`; the stages are 2, 3 and 4. Sites of SE on a branch
    ('standard', 'inside_3x3') are in both branches, the others once a unit; the paper leaves it
    open.

    Attributes:
        branch: BasicBranch, or BottleneckBranch with its ReLUs behind the sums.
        stem: channels of the stem.
        width: channels of stage 2; each further stage doubles them.
        backward: mixture of the gradients, 'shake' or 'even'.
    """

    stage_sizes: Sequence[int] = (4, 4, 4)
    branch: type[ShakeBranch] = BasicBranch
    stem: int = 16
    width: int = 96
    backward: str = 'shake'
    se_stages: Sequence[int] = (2, 3, 4)

    stages = (2, 3, 4)

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        layers = self.layers(train)
        pre_activated = self.branch is BasicBranch
        x = layers.conv_norm('_stem', x, self.stem, 3)
        x = x if pre_activated else nn.relu(x)
        unit = partial(
            ShakeUnit,
            branch=self.branch,
            backward=self.backward,
            pre_activated=pre_activated,
            train=train,
        )
        maps = self.stack(x, 1, unit, layers)
        for stride, x in maps:
            yield stride, x
        if pre_activated:
            yield stride, nn.relu(x)


_shake = partial(register, module=ShakeResNet, input_size=32)
_26_2x96d = partial(_shake, stage_sizes=(4, 4, 4), num_classes=10)
_26_2x96d('shake_shake26_2x96d', paper=PaperResult(2.56, None, 'Table 4, CIFAR-10'))
_26_2x96d(
    'se_shake_shake26_2x96d', se=SqueezeExcite, paper=PaperResult(2.12, None, 'Table 4, CIFAR-10')
)
_29_2x4x64d = partial(
    _shake,
    stage_sizes=(3, 3, 3),
    branch=BottleneckBranch,
    stem=64,
    width=256,
    backward='even',
    num_classes=100,
)
# The table's 15.85 was trained without Cutout; with it the plain network has 15.20.
_29_2x4x64d('shake_even29_2x4x64d', paper=PaperResult(15.85, None, 'Table 5, CIFAR-100'))
_29_2x4x64d(
    'se_shake_even29_2x4x64d',
    se=SqueezeExcite,
    paper=PaperResult(15.41, None, 'Table 5, CIFAR-100'),
)
