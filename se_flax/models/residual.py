"""Where SE sits in a residual unit, and in which stages."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import jax
from flax import linen as nn

from se_flax.errors import UserError, check_at_least, check_known
from se_flax.models.network import Layer, Layers, Maps, Network, recalibrate

PLACEMENTS = ('standard', 'pre', 'post', 'identity', 'inside_3x3')


class ResidualUnit(nn.Module):
    """A branch beside an identity, with one site for SE (Figure 5, Table 14; Table 15)."""

    layers: Layers
    se: Layer | None
    placement: str

    def squeeze_excite(self, site: str, x):
        return recalibrate(self.se, x) if site == self.placement else x


class ResidualNetwork(Network):
    """A network of residual units, grouped in stages.

    Raises UserError for an unknown placement or stage, as a typo must not mean "no SE".

    Attributes:
        stage_sizes: units a stage.
        placement: 'standard' (on the branch, before the addition), 'pre' (on the branch's input),
            'post' (behind the addition and its ReLU), 'identity' (on the shortcut; all Table 14) or
            'inside_3x3' (behind the branch's first spatial convolution; Table 15).
        se_stages: stages that have SE (Table 13).
    """

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    placement: str = 'standard'
    se_stages: Sequence[int] = (2, 3, 4, 5)

    stages: ClassVar[Sequence[int]] = (2, 3, 4, 5)

    def __post_init__(self):
        super().__post_init__()
        check_known('placement', self.placement, PLACEMENTS)
        for stage in self.se_stages:
            check_known('stage in se_stages', stage, self.stages)
        if not 1 <= len(self.stage_sizes) <= len(self.stages):
            raise UserError(
                f'stage_sizes={self.stage_sizes} must have 1 to {len(self.stages)} numbers'
            )
        for size in self.stage_sizes:
            check_at_least('size in stage_sizes', size, 1)

    def se_of(self, stage: int) -> Layer | None:
        """Returns what makes the SE blocks of a stage; None where it has none."""
        return self.se if stage in self.se_stages else None

    def unit(
        self, unit: Callable[..., ResidualUnit], stage: int, layers: Layers
    ) -> Callable[..., ResidualUnit]:
        """Returns the constructor of a stage's units, told of layers and SE."""
        return partial(unit, layers=layers, se=self.se_of(stage), placement=self.placement)

    def stack(
        self, x: jax.Array, stride: int, unit: Callable[..., ResidualUnit], layers: Layers
    ) -> Maps:
        """Applies `stage_sizes` units, stage by stage from stage 2 on, to a map of that stride.

        Those of stage 2 have `width` filters; each further stage doubles them, and its first unit
        halves the map. Yields (stride, map) behind each unit.
        """
        for stage, size in enumerate(self.stage_sizes, start=2):
            make = self.unit(unit, stage, layers)
            for i in range(size):
                strides = 2 if stage > 2 and i == 0 else 1
                name = f'stage{stage}_block{i + 1}'
                x = make(filters=self.width << stage - 2, strides=strides, name=name)(x)
                stride *= strides
                yield stride, x
