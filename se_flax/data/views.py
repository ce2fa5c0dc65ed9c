"""An image as a square of one size, from which a protocol cuts its crops."""

import dataclasses

import numpy as np

from se_flax.data.transforms import EXTREME, INTERPOLATIONS, View, check_size, resize
from se_flax.errors import check_known


@dataclasses.dataclass(frozen=True)
class Squash(View):
    """The whole image as a square; its aspect is lost.

    The shorter edge is resized first and the longer one then, as in the source of the twelve
    crops (`se_flax.evaluation.protocols`). Raises UserError for an unknown `interpolation`.

    Attributes:
        interpolation: one of `se_flax.data.transforms.INTERPOLATIONS`.
    """

    interpolation: str = 'bilinear'

    def __post_init__(self):
        check_known('interpolation', self.interpolation, INTERPOLATIONS)
        check_size('image_size', self.image_size, at_least=1)

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None, out: np.ndarray) -> None:
        """Writes `image` into `out`, `[S, S, C]`, both uint8; `rng` is not used."""
        size, least = self.image_size, min(image.shape[:2])
        height, width = (min(edge * size // least, EXTREME * size) for edge in image.shape[:2])
        image = resize(image, height, width, self.interpolation)
        out[:] = resize(image, size, size, self.interpolation)
