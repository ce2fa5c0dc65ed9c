"""What every network has: channels, classes, SE or none, BatchNorm groups, a dtype."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, ClassVar, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.errors import UserError, check_at_least, check_images
from se_flax.nn import Affine, BatchNorm, Conv, FoldedNorm

Layer = Callable[..., nn.Module]
Maps = Iterator[tuple[int, jax.Array]]  # stride, map


class Layers(NamedTuple):
    """The layers a network hands down to its blocks.

    Attributes:
        conv: makes a convolution.
        norm: makes a BatchNorm.
        norm_of_conv: makes the one right behind a convolution of its own, see `conv_norm`.
    """

    conv: Layer
    norm: Layer
    norm_of_conv: Layer

    def conv_norm(self, name, x, *args, **kwargs):
        """Applies `conv{name}` and `norm{name}`, as parameters of the module that calls."""
        x, norm = self._conv(name, x, *args, **kwargs)
        return norm(x)

    def conv_affine(self, name, x, *args, **kwargs) -> Affine:
        """Does the same, but leaves the map to be computed, so that SE can scale it before."""
        x, norm = self._conv(name, x, *args, **kwargs)
        return norm.affine(x)

    def _conv(
        self,
        name,
        x,
        features,
        kernel_size=1,
        strides=1,
        *,
        scale_init=nn.initializers.ones,
        **conv,
    ):
        x = self.conv(features, kernel_size, strides, name=f'conv{name}', **conv)(x)
        return x, self.norm_of_conv(name=f'norm{name}', scale_init=scale_init)


def recalibrate(se: Layer | None, x, name: str = 'se'):
    """Applies the SE block where there is one, as parameters of the module that calls."""
    return se(name=name)(x) if se else x


@cache
def _same_partial(function, args, keywords):
    """Returns one object for equal arguments, as two equal partials do not compare equal."""
    return partial(function, *args, **dict(keywords))


def _comparable(value):
    if isinstance(value, partial):
        return _same_partial(value.func, value.args, tuple(sorted(value.keywords.items())))
    return tuple(value) if isinstance(value, list) else value


def _float_dtype(dtype):
    with contextlib.suppress(TypeError):  # of a name that is none
        if jnp.issubdtype(dtype, jnp.floating):
            return jnp.dtype(dtype)
    raise UserError(f'dtype={dtype!r} must be a float dtype, such as float32')


class Network(nn.Module):
    """Takes `[B, H, W, in_channels]` float images, returns `[B, num_classes]` logits.

    Every family is one class, with and without SE. Logits are float32 or wider. All raise UserError
    for fields that no network can have, for other images and for images too small to leave a map,
    before anything is compiled. Networks with equal fields are equal and hash alike, so that they
    can be static arguments of `jax.jit`.

    Attributes:
        num_classes: width of the head; 0 is no head: the network returns what the head would
            take, the pooled features `[B, C]` before dropout, float32 or wider.
        in_channels: of the images.
        se: makes the SE block, such as `partial(SqueezeExcite, reduction=8)`; None is the plain
            network.
        bn_group_size: images that share BatchNorm statistics; None is the global batch.
        bn_momentum: share of the running statistics kept at a step.
        bn_frozen: training, too, normalises by the running statistics; an array is the choice at
            run time, and what then becomes of the statistics is the caller's.
        dtype: of the maps; parameters and statistics are float32 or wider.
        dropout: share of the features dropped before the head in training.
        folded: no BatchNorm, for inference alone; `fold_batch_norm` makes the parameters.
    """

    num_classes: int = 1000
    in_channels: int = 3
    se: Layer | None = None
    bn_group_size: int | None = None
    bn_momentum: float = 0.9
    bn_frozen: bool | jax.Array = False
    dtype: Any = jnp.float32
    dropout: float = 0.0
    folded: bool = False

    epsilon: ClassVar[float] = 1e-5  # of BatchNorm

    @property
    def smallest(self) -> int:
        """Least height and width of an image, in pixels."""
        return 1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = _comparable(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            if field.type in (int, int | None) and value is not None:
                check_at_least(field.name, value, 0 if field.name == 'num_classes' else 1)
            if field.type == Sequence[int] and not isinstance(value, tuple):
                raise UserError(f'{field.name}={value!r} must be a sequence of integers')
        super().__post_init__()
        if not (self.se is None or callable(self.se)):
            raise UserError(f'se={self.se!r} must be None or make a block, such as SqueezeExcite')
        if not 0 <= self.bn_momentum <= 1:
            raise UserError(f'bn_momentum={self.bn_momentum} must be 0 to 1')
        if not 0 <= self.dropout < 1:
            raise UserError(f'dropout={self.dropout} must be at least 0 and below 1')
        object.__setattr__(self, 'dtype', _float_dtype(self.dtype))

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        """Yields (stride, map) on the way to the head; only the last map of a stride counts."""
        raise NotImplementedError

    @overload
    def __call__(
        self, images: jax.Array, *, train: bool = False, head: Literal[True] = True
    ) -> jax.Array: ...

    @overload
    def __call__(
        self, images: jax.Array, *, train: bool = False, head: Literal[False]
    ) -> dict[str, jax.Array]: ...

    @nn.compact
    def __call__(self, images, *, train=False, head=True):
        """Returns logits; without `head` what `features` returns."""
        check_images(images, self.in_channels, self.smallest)
        maps = {}
        for stride, x in self.trunk(images, train):
            maps[f'C{stride.bit_length() - 1}'] = x
        return self.classify(x, train) if head else maps

    def features(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns the last map of each stride, for detection, segmentation and retrieval.

        By FPN's names (arXiv 1612.03144): 'C3' has stride `2^3`, whatever the network.
        `model_info(name).features` lists them; each is `[B, H / stride, W / stride, C]` in `dtype`,
        rounded as the network's convolutions and pools do.

        >>> import jax, jax.numpy as jnp
        >>> from se_flax import create_model
        >>> model = create_model('se_resnet20_cifar', num_classes=0)
        >>> images = jnp.ones((1, 32, 32, 3))
        >>> variables = model.init(jax.random.key(0), images)
        >>> maps = model.apply(variables, images, method='features')
        >>> jax.tree.map(jnp.shape, maps)
        {'C0': (1, 32, 32, 16), 'C1': (1, 16, 16, 32), 'C2': (1, 8, 8, 64)}
        """
        return self(images, train=train, head=False)

    def layers(self, train: bool) -> Layers:
        """Returns convolution and BatchNorm as this network has them."""
        conv = partial(Conv, dtype=self.dtype)
        if self.folded:
            if train:
                raise UserError('a network with folded=True has no BatchNorm to train: train=False')
            norm = partial(FoldedNorm, dtype=self.dtype)
            return Layers(conv, norm, partial(norm, scaled=False))
        norm = partial(
            BatchNorm,
            use_running_average=self.bn_frozen if train else True,
            group_size=self.bn_group_size,
            momentum=self.bn_momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        return Layers(conv, norm, norm)

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        """Turns features, `[B, C]` or the map whose mean they are, into the result."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = x.astype(wide)
        if x.ndim == 4:
            x = x.mean((1, 2))  # not a fixed 7x7 window, so that any image size works
        if not self.num_classes:
            return x
        if self.dropout:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=wide, param_dtype=wide, name='head')(x)
