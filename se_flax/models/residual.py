"""Where SE sits in a residual unit, and in which stages."""

from collections.abc import Callable, Sequence
from functools import partial

from flax import linen as nn

from se_flax.errors import check_known
from se_flax.models.network import Layer, Layers, Network, recalibrate

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

    Attributes:
        placement: 'standard' (on the branch, before the addition), 'pre' (on the branch's input),
            'post' (behind the addition and its ReLU), 'identity' (on the shortcut; all Table 14) or
            'inside_3x3' (behind the branch's first spatial convolution; Table 15).
        se_stages: stages that have SE (Table 13).
    """

    placement: str = 'standard'
    se_stages: Sequence[int] = (2, 3, 4, 5)

    def se_of(self, stage: int) -> Layer | None:
        """Returns what makes the SE blocks of a stage; None where it has none."""
        return self.se if stage in self.se_stages else None

    def unit(self, unit: Callable[..., ResidualUnit], stage: int, layers: Layers):
        """Returns the constructor of a stage's units, told of layers and SE."""
        return partial(unit, layers=layers, se=self.se_of(stage), placement=self.placement)

    def stack(
        self,
        x,
        unit: Callable[..., ResidualUnit],
        layers: Layers,
        *,
        stage_sizes: Sequence[int],
        width: int,
    ):
        """Applies `stage_sizes` units, stage by stage from stage 2 on.

        Those of stage 2 have `width` filters; each further stage doubles them, and its first unit
        halves the map.
        """
        for stage, size in enumerate(stage_sizes, start=2):
            make = self.unit(unit, stage, layers)
            for i in range(size):
                strides = 2 if stage > 2 and i == 0 else 1
                name = f'stage{stage}_block{i + 1}'
                x = make(filters=width << stage - 2, strides=strides, name=name)(x)
        return x

    def check_sites(self, stages: Sequence[int]) -> None:
        """Raises UserError for an unknown placement or stage; a typo must not mean "no SE"."""
        check_known('placement', self.placement, PLACEMENTS)
        for stage in self.se_stages:
            check_known('stage in se_stages', stage, stages)
