"""What of an image is shown to a network, and how what it says of each view becomes one answer."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from se_flax.data import EvalTransform
from se_flax.data.transforms import Squash, View
from se_flax.errors import UserError, check_known

CROPS = {
    1: 'centre crop',
    2: 'centre crop and its mirror image',
    10: 'ten crops',
    12: 'twelve crops',
}


class Average(NamedTuple):
    """How scores `[V, B, C]` of V views become one: all are scores again, until `log_probs`."""

    of_logits: Callable[[jax.Array], jax.Array]  # scores whose `mean` may be taken
    mean: Callable[[jax.Array], jax.Array]  # over the first axis
    log_probs: Callable[[jax.Array], jax.Array]


AVERAGES = {
    'probabilities': Average(
        jax.nn.log_softmax, lambda s: logsumexp(s, axis=0) - jnp.log(len(s)), lambda s: s
    ),
    'logits': Average(lambda s: s, lambda s: s.mean(0), jax.nn.log_softmax),
}


class Scale(NamedTuple):
    """The square an image is made into, and the side of the views that are cut from it."""

    canvas: EvalTransform | Squash
    size: int


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The views of an image: so many crops at each scale, all of the same weight.

    * 1: the centre of the image whose shorter edge was resized.
    * 2: that and its mirror image.
    * 10: the four corners and the centre of the central square of `resize` pixels, and their
      mirror images (AlexNet, NIPS 2012, section 4.1; the "10-crop" of arXiv 1512.03385).
    * 12: the same of the whole image squeezed to that square, and the square itself, shrunk
      (`evaluation_cls.py` of github.com/soeaver/caffe-model, which has 12-crop errors of the
      authors' networks).

    Raises UserError for unknown `crops` and `average`, and lists that do not pair.

    Attributes:
        sizes: side of the views in pixels, a scale each; () is what the network expects.
        resizes: length of the shorter edge; () is the network's own. One size, or one resize, is
            that of all scales.
        crops: a key of CROPS.
        average: 'probabilities', as AlexNet, or 'logits'.
    """

    sizes: tuple[int, ...] = ()
    resizes: tuple[int, ...] = ()
    crops: int = 1
    average: str = 'probabilities'

    def __post_init__(self):
        check_known('crops', self.crops, CROPS)
        check_known('average', self.average, AVERAGES)
        if 1 < len(self.sizes) != len(self.resizes) > 1:
            raise UserError(
                f'{len(self.sizes)} sizes and {len(self.resizes)} resizes do not pair; '
                'take as many of both, or one for all'
            )

    def scales(self, own: EvalTransform) -> list[Scale]:
        """Returns the scales of a network whose own view is `own`.

        Raises UserError for a size above its resize, and for many crops of images that are not
        resized.
        """
        sizes, resizes = self.sizes or (own.image_size,), self.resizes or (own.resize,)
        count = max(len(sizes), len(resizes))
        return [
            self._scale(dataclasses.replace(own, image_size=size, resize=to))
            for size, to in zip(_spread(sizes, count), _spread(resizes, count), strict=True)
        ]

    def describe(self, own: EvalTransform) -> str:
        """Says in a line what `scales` gives."""
        scales = self.scales(own)
        resizes = _spread(self.resizes or (own.resize,), len(scales))
        sides = [
            f'{scale.size} pixels of {resize or "the image as it is"}'
            for scale, resize in zip(scales, resizes, strict=True)
        ]
        return ', '.join([CROPS[self.crops], *sides])

    def _scale(self, view: EvalTransform) -> Scale:
        size, side = view.image_size, view.resize
        if self.crops <= 2:
            return Scale(view, size)
        if not side:
            raise UserError(
                f'crops={self.crops} are cut from a square of resize pixels, and resize=0 makes '
                f'none; take at least {size}'
            )
        if self.crops == 12:
            own = {f.name: getattr(view, f.name) for f in dataclasses.fields(View)}
            own |= {'image_size': side, 'interpolation': view.interpolation}
            return Scale(Squash(**own), size)
        return Scale(dataclasses.replace(view, image_size=side), size)


def _spread(values: tuple[int, ...], count: int) -> tuple[int, ...]:
    return values * count if len(values) == 1 else values


def places(crops: int, side: int, size: int) -> np.ndarray:
    """Returns where the views lie in `lay_out`'s canvas: top, left, mirrored, int32 `[V, 3]`."""
    far, middle = side - size, round((side - size) / 2)
    spots = [(middle, middle)]
    if crops >= 10:
        spots += [(top, left) for top in (0, far) for left in (0, far)]
    if crops == 12:
        spots.append((side, 0))
    mirrored = (False, True) if crops > 1 else (False,)
    return np.array([(*spot, mirror) for mirror in mirrored for spot in spots], np.int32)


def lay_out(crops: int, canvas: jax.Array, size: int) -> jax.Array:
    """Returns uint8 images `[B, R, R, C]` with all that views are cut from.

    Twelve crops have the whole image too: it is laid below, as rows R to R + `size`.
    """
    if crops != 12:
        return canvas
    batch, side = canvas.shape[:2]
    # Bilinear without antialias, as the source of the protocol shrinks.
    shape = (batch, size, size, canvas.shape[-1])
    whole = jax.image.resize(canvas.astype(jnp.float32), shape, 'linear', antialias=False)
    whole = jnp.round(whole).astype(canvas.dtype)
    padded = jnp.pad(whole, ((0, 0), (0, 0), (0, side - size), (0, 0)))
    return jnp.concatenate([canvas, padded], axis=1)


def cut(canvas: jax.Array, place: jax.Array, size: int) -> jax.Array:
    """Cuts one view, `[B, size, size, C]`, of images; `place` is a row of `places`."""
    top, left, mirrored = place
    shape = (len(canvas), size, size, canvas.shape[-1])
    view = jax.lax.dynamic_slice(canvas, (0, top, left, 0), shape)
    return jnp.where(mirrored, view[:, :, ::-1], view)
