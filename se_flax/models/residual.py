"""Where SE sits in a residual unit, and in which stages."""

from collections.abc import Callable, Sequence
from functools import partial

from flax import linen as nn

from se_flax.errors import check_known
from se_flax.models.network import Layer, Layers, Network

PLACEMENTS = ('standard', 'pre', 'post', 'identity', 'inside_3x3')


class ResidualUnit(nn.Module):
    """A branch beside an identity, with one site for SE (Figure 5, Table 14; Table 15)."""

    layers: Layers
    se: Layer | None
    placement: str

    def squeeze_excite(self, site: str, x):
        return self.se(name='se')(x) if self.se and site == self.placement else x


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

    def unit(self, unit: Callable[..., ResidualUnit], stage: int, layers: Layers):
        """Returns the constructor of a stage's units, told of layers and SE."""
        se = self.se if stage in self.se_stages else None
        return partial(unit, layers=layers, se=se, placement=self.placement)

    def check_sites(self, stages: Sequence[int]) -> None:
        """Raises UserError for an unknown placement or stage; a typo must not mean "no SE"."""
        check_known('placement', self.placement, PLACEMENTS)
        for stage in self.se_stages:
            check_known('stage in se_stages', stage, stages)
