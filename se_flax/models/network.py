"""Base classes of the networks, and the layers that these hand down to their blocks."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import ones

from se_flax.errors import UserError, check_at_least, check_images, check_known
from se_flax.nn import Affine, BatchNorm, Conv, FoldedNorm, SqueezeExcite

Layer = Callable[..., nn.Module]
Maps = Iterator[tuple[int, jax.Array]]  # stride, map
PLACEMENTS = ('standard', 'pre', 'post', 'identity', 'inside_3x3')


class Layers(NamedTuple):
    """The constructors of a network's layers; parameters belong to the module that calls them."""

    conv: Layer
    norm: Layer
    norm_of_conv: Layer  # BatchNorm after a convolution of its own, into which it can be folded
    se: Layer | None
    placement: str = 'standard'
    drop_rate: float = 0.0

    def conv_norm(
        self, name, x, features, kernel_size=1, strides=1, affine=False, scale_init=ones, **conv
    ):
        """Applies `conv{name}` and `norm{name}`; `affine` returns an `Affine` for SE to scale."""
        x = self.conv(features, kernel_size, strides, name=f'conv{name}', **conv)(x)
        norm = self.norm_of_conv(name=f'norm{name}', scale_init=scale_init)
        return norm.affine(x) if affine else norm(x)

    def recalibrate(self, x, name='se'):
        """Applies SE, if the network has it."""
        if not self.se:
            return x
        block = self.se(name=name)
        if isinstance(x, Affine) and not isinstance(block, SqueezeExcite):
            x = x.map()  # a user's own block takes maps
        return block(x)

    def squeeze_excite(self, site, x):
        """Applies SE, if the network has it at this site."""
        return self.recalibrate(x) if site == self.placement else x

    def drop_path(self, x):
        """Zeroes a unit's branch for random images in training, and scales the others' up."""
        drop = nn.Dropout(self.drop_rate, broadcast_dims=(1, 2, 3), deterministic=False)
        return drop(x) if self.drop_rate else x


@lru_cache(maxsize=None, typed=True)  # 8 is not 8.0, which a layer may refuse
def _same_partial(function, /, *args, **keywords):
    """Returns one object for equal arguments, as two equal partials do not compare equal."""
    return partial(function, *args, **keywords)


class Network(nn.Module):
    """Base class: `[B, H, W, in_channels]` float images to `[B, num_classes]` logits.

    Logits are float32 or wider. Impossible fields and images raise UserError before anything is
    compiled. Networks with equal fields are equal and hash alike, so they can be static arguments
    of `jax.jit`.

    Attributes:
        num_classes: width of the head; 0 for no head: the network returns the pooled features
            `[B, C]` before dropout, in float32 or wider.
        in_channels: channels of the images.
        se: makes the SE block, such as `partial(SqueezeExcite, reduction=8)`; None for no SE.
        bn_group_size: images that share BatchNorm statistics; None is the global batch.
        bn_momentum: weight of the old running statistics in each step.
        bn_frozen: normalizes by the running statistics in training, too. With an array, which
            chooses at run time, the caller decides what becomes of the statistics.
        dtype: of the maps; parameters and statistics are float32 or wider.
        dropout: rate before the head.
        folded: no BatchNorm, for inference only; `fold_batch_norm` makes the parameters.
        epsilon: of BatchNorm.
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
    epsilon: float = 1e-5

    @property
    def smallest(self) -> int:
        """The least height and width of an image, in pixels."""
        return 1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, partial):
                keywords = dict(sorted(value.keywords.items()))
                try:
                    value = _same_partial(value.func, *value.args, **keywords)
                except TypeError:  # unhashable
                    text = f'{field.name}={keywords} must have no lists or arrays'
                    raise UserError(text) from None
            value = tuple(value) if isinstance(value, list) else value
            object.__setattr__(self, field.name, value)
            if field.type in (int, int | None) and value is not None:
                check_at_least(field.name, value, 0 if field.name == 'num_classes' else 1)
            if field.type is float:
                check_at_least(field.name, value, 1 if field.name == 'width' else 0, whole=False)
            if field.type == Sequence[int] and not isinstance(value, tuple):
                raise UserError(f'{field.name}={value!r} must be a sequence of integers')
        super().__post_init__()
        if isinstance(self.se, nn.Module):
            raise UserError(
                'se is a module; give what makes one, such as partial(SqueezeExcite, reduction=8)'
            )
        if not (self.se is None or callable(self.se)):
            raise UserError(f'se={self.se!r} must be None or a callable, such as SqueezeExcite')
        if self.bn_momentum > 1:
            raise UserError(f'bn_momentum={self.bn_momentum} must be between 0 and 1')
        for field in ('dropout', 'drop_path'):
            if (rate := getattr(self, field, 0)) >= 1:
                raise UserError(f'{field}={rate} must be at least 0 and below 1')
        floating = False
        with contextlib.suppress(TypeError):  # not the name of a dtype
            # NumPy takes None for float64.
            floating = self.dtype is not None and jnp.issubdtype(self.dtype, jnp.floating)
        if not floating:
            raise UserError(f'dtype={self.dtype!r} must be a float dtype, such as float32')
        object.__setattr__(self, 'dtype', jnp.dtype(self.dtype))

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        """Yields (stride, map) on the way to the head; only the last map of a stride counts."""
        raise NotImplementedError

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits."""
        return self._run(images, train, head=True)

    def features(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns the last map of each stride, `[B, H / stride, W / stride, C]` in `dtype`.

        The names are FPN's (arXiv 1612.03144): 'C3' has stride `2^3` in every network.

        >>> from se_flax import create_model
        >>> model, images = create_model('se_resnet20_cifar'), jnp.ones((1, 32, 32, 3))
        >>> variables = model.init(jax.random.key(0), images)
        >>> maps = model.apply(variables, images, method='features')
        >>> jax.tree.map(jnp.shape, maps)
        {'C0': (1, 32, 32, 16), 'C1': (1, 16, 16, 32), 'C2': (1, 8, 8, 64)}
        """
        return self._run(images, train, head=False)

    @nn.compact
    def _run(self, images, train, head):
        check_images(images, self.in_channels, self.smallest)
        maps = {}
        for stride, x in self.trunk(images, train):
            maps[f'C{stride.bit_length() - 1}'] = x
        return self.classify(x, train) if head else maps

    def layers(self, train: bool) -> Layers:
        conv = partial(Conv, dtype=self.dtype)
        if self.folded:
            if train:
                raise UserError('folded=True leaves no BatchNorm to train: use train=False')
            norm = partial(FoldedNorm, dtype=self.dtype)
            return Layers(conv, norm, partial(norm, scaled=False), self.se)
        norm = partial(
            BatchNorm,
            use_running_average=self.bn_frozen if train else True,
            group_size=self.bn_group_size,
            momentum=self.bn_momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        return Layers(conv, norm, norm, self.se)

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the result for features: `[B, C]`, or a map that is averaged first."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = x.astype(wide)
        if x.ndim == 4:
            x = x.mean((1, 2))  # not a fixed 7x7 window, so that any image size works
        if not self.num_classes:
            return x
        if self.dropout:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=wide, param_dtype=wide, name='head')(x)


class ResidualNetwork(Network):
    """Base class of the networks of residual units in stages.

    Attributes:
        stage_sizes: units per stage.
        placement: where SE is: 'standard' (on the branch, before the addition), 'pre' (on the
            branch's input), 'post' (after the addition and its ReLU), 'identity' (on the shortcut;
            all Figure 5 and Table 14) or 'inside_3x3' (after the branch's first spatial
            convolution; Table 15).
        se_stages: stages that have SE (Table 13).
        drop_path: rate at which training drops the branch of an image (stochastic depth, arXiv
            1603.09382) in the last unit; it rises linearly from 0 in the first. Branches that are
            concatenated are never dropped. Needs the PRNG stream `dropout`.
    """

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    placement: str = 'standard'
    se_stages: Sequence[int] = (2, 3, 4, 5)
    drop_path: float = 0.0

    stages: ClassVar[Sequence[int]] = (2, 3, 4, 5)  # the paper counts the stem as stage 1
    reduce_input: ClassVar[bool] = False  # SE's reduction divides the channels of a unit's input

    def __post_init__(self):
        super().__post_init__()
        check_known('placement', self.placement, PLACEMENTS)
        for stage in self.se_stages:
            check_known('stage in se_stages', stage, self.stages)
        most = len(self.stages)
        if not 1 <= len(self.stage_sizes) <= most:
            raise UserError(f'stage_sizes={self.stage_sizes} must have 1 to {most} numbers')
        for size in self.stage_sizes:
            check_at_least('size in stage_sizes', size, 1)

    def layers(self, train: bool, stage: int = 1, unit: int = 0, channels: int = 0) -> Layers:
        """Returns those of the stem, or of a stage's unit (from 0) whose input has `channels`."""
        se = self.se if stage in self.se_stages else None
        # A user's own block may lack the field.
        if se and self.reduce_input and hasattr(getattr(se, 'func', se), 'base_channels'):
            se = partial(se, base_channels=channels)
        layers = super().layers(train)._replace(se=se, placement=self.placement)
        if stage == 1 or not train:
            return layers
        before = sum(self.stage_sizes[: self.stages.index(stage)]) + unit
        rate = self.drop_path * before / max(1, sum(self.stage_sizes) - 1)
        return layers._replace(drop_rate=rate)

    def filters(self, stage: int) -> int:
        """Returns the filters of a stage's units: stage 2's doubled in each further stage."""
        return round(self.width * 2 ** (stage - 2))

    def stack(
        self, x: jax.Array, stride: int, unit: Layer, train: bool, halve_first: bool = False
    ) -> Maps:
        """Applies all units to a map of that stride, and yields (stride, map) after each.

        Each stage after stage 2 halves the map, with `halve_first` stage 2 as well.
        """
        for stage, size in enumerate(self.stage_sizes, start=2):
            for i in range(size):
                layers = self.layers(train, stage, i, x.shape[-1])
                strides = 2 if i == 0 and (stage > 2 or halve_first) else 1
                name = f'stage{stage}_block{i + 1}'
                x = unit(layers, self.filters(stage), strides, name=name)(x)
                stride *= strides
                yield stride, x
