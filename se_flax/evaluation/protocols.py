"""Which views of an image a network sees, and how its outputs for them are averaged."""

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

CROPS = {1: 'center crop', 2: 'center crop and mirror image', 10: 'ten crops', 12: 'twelve crops'}


class Average(NamedTuple):
    """How logits `[B, C]` of several views become one `[B, C]` of log probabilities."""

    of_logits: Callable[[jax.Array], jax.Array]  # to scores, which `mean` may average
    mean: Callable[[jax.Array], jax.Array]  # over the first axis; scores again
    log_probs: Callable[[jax.Array], jax.Array]  # of scores


AVERAGES = {
    'probabilities': Average(
        jax.nn.log_softmax, lambda s: logsumexp(s, axis=0) - jnp.log(len(s)), lambda s: s
    ),
    'logits': Average(lambda s: s, lambda s: s.mean(0), jax.nn.log_softmax),
}


class Scale(NamedTuple):
    """The square that an image is resized to, and the side of the views cut from it."""

    canvas: EvalTransform | Squash
    size: int
    resize: int


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The views of an image: a number of crops at each scale, equally weighted.

    * 1: the center of the image after its shorter edge is resized.
    * 2: the center and its mirror image.
    * 10: the four corners and the center of the central square of `resize` pixels, and their
      mirror images (AlexNet, NIPS 2012, section 4.1; the "10-crop" of arXiv 1512.03385).
    * 12: the same, but of the whole image squeezed to that square; and the square itself, shrunk,
      and its mirror image (`evaluation_cls.py` of github.com/soeaver/caffe-model).

    `sizes` of the views and `resizes` of the shorter edge, in pixels, have a number per scale; one
    number applies to all, empty is the network's own. AlexNet's `average` is the default. Raises
    UserError for unknown `crops` or `average`, and for lists that do not pair.
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
                f'{len(self.sizes)} sizes and {len(self.resizes)} resizes do not match; '
                'give as many of both, or one for all'
            )

    def scales(self, own: EvalTransform) -> list[Scale]:
        """Returns the scales for a network whose own view is `own`.

        Raises UserError for a size above its resize, and for ten or twelve crops without a resize.
        """
        sizes, resizes = self.sizes or (own.image_size,), self.resizes or (own.resize,)
        pairs = np.transpose(np.broadcast_arrays(sizes, resizes)).tolist()
        return [self._scale(dataclasses.replace(own, image_size=s, resize=r)) for s, r in pairs]

    def describe(self, own: EvalTransform) -> str:
        """Returns a line that describes `scales`."""
        sides = [f'{s.size} pixels (resize {s.resize or "none"})' for s in self.scales(own)]
        return f'{CROPS[self.crops]} of {", ".join(sides)}'

    def _scale(self, view: EvalTransform) -> Scale:
        size, side = view.image_size, view.resize
        if self.crops <= 2:
            return Scale(view, size, side)
        if not side:
            raise UserError(f'crops={self.crops} needs a resize, but resize=0; use at least {size}')
        if self.crops == 10:
            return Scale(dataclasses.replace(view, image_size=side), size, side)
        own = {f.name: getattr(view, f.name) for f in dataclasses.fields(View)}
        return Scale(Squash(**own | {'image_size': side}), size, side)


OWN_VIEW = Protocol()


def places(crops: int, side: int, size: int) -> np.ndarray:
    """Returns top, left, mirrored of each view on the canvas of `lay_out`, int32 `[V, 3]`."""
    far, middle = side - size, round((side - size) / 2)
    spots = [(middle, middle)]
    if crops >= 10:
        spots += [(top, left) for top in (0, far) for left in (0, far)]
    if crops == 12:
        spots.append((side, 0))
    mirrored = (False, True) if crops > 1 else (False,)
    return np.array([(*spot, mirror) for mirror in mirrored for spot in spots], np.int32)


def lay_out(crops: int, canvas: jax.Array, size: int) -> jax.Array:
    """Returns the `[B, R, R, C]` canvas; for 12 crops with the shrunk one as rows R to R + size."""
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
    """Returns one view of each image, `[B, size, size, C]`; `place` is a row of `places`."""
    top, left, mirrored = place
    shape = (len(canvas), size, size, canvas.shape[-1])
    none = jnp.zeros_like(top)  # all indices have one dtype, also with 64 bits enabled
    view = jax.lax.dynamic_slice(canvas, (none, top, left, none), shape)
    return jnp.where(mirrored, view[:, :, ::-1], view)
