"""From the fields of a config to the objects of a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn
from jax.sharding import Mesh

from se_flax.data import Dataset, EvalTransform, TrainTransform, decode_all, open_dataset
from se_flax.errors import Problems, UserError
from se_flax.models import Network
from se_flax.parallel import data_mesh
from se_flax.training.config import INTERVALS, check_fields, check_values, make_network
from se_flax.training.fine_tune import check_weights, fill_from_weights, keeps_head
from se_flax.training.optimizer import make_optimizer, make_schedule
from se_flax.training.state import TrainState, make_init
from se_flax.training.step import TrainStep, make_train_step

TRACED_CLASSES = 10  # of a network that is checked before the data are opened


class Plan(NamedTuple):
    """What a run consists of.

    `config` has what its weights file knows in place of None; `every` has the steps between two
    logs, evals and checkpoints; BatchNorm is frozen from step `frozen_from` on.
    """

    config: ml_collections.ConfigDict
    model: Network
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    train_set: Dataset
    eval_set: Dataset
    train_view: TrainTransform
    eval_view: EvalTransform
    num_steps: int
    steps_per_epoch: float
    every: dict[str, int | None]
    frozen_from: int | None

    def due(self, what: str, step: int) -> bool:
        """Tells whether a 'log', 'eval' or 'checkpoint' follows this step; the last has all."""
        every = self.every[what]
        return step == self.num_steps or (every is not None and step % every == 0)


def make_plan(config: ml_collections.ConfigDict, num_devices: int) -> Plan:
    """Makes all that a config names; so all that is wrong in it is found here, and told at once.

    Names come before data. Raises UserError, and MissingError for data that are not there, before
    anything is compiled.
    """
    problems = Problems()
    check_fields(config, problems)
    of_weights = 'init_from', 'image_size', 'in_channels', 'adapt_channels'
    config = problems.check(of_weights, fill_from_weights, config) or config
    check_values(config, num_devices, problems)
    network = 'model', 'model_fields', 'image_size', 'in_channels', 'dtype', 'bn_group_size'
    problems.check(network, lambda: _check_model(make_model(config, TRACED_CLASSES), config))
    if config.get('init_from'):
        check_weights(config, problems)
    crops = 'image_size', 'crop_area', 'crop_aspect', 'fill', 'in_channels'
    train_view = problems.check(['crop', 'interpolation', *crops], train_transform, config)
    eval_view = problems.check(['eval_resize', 'interpolation', *crops], eval_transform, config)
    data = 'data', 'data_dir'
    train_set = problems.check(data, open_split, config, 'train')
    eval_set = problems.check(data, open_split, config, 'eval')
    problems.tell()
    if config.init_from:
        keeps_head(config, train_set.class_names)
    if config.cache:
        train_set, eval_set = (decode_all(s, eval_view.decode) for s in (train_set, eval_set))
    steps_per_epoch = len(train_set) / config.batch_size
    num_steps = total_steps(config, steps_per_epoch)
    frozen = frozen_from(config, num_steps, steps_per_epoch)
    every = {what: interval(config, what, steps_per_epoch) for what in INTERVALS}
    model = make_model(config, train_set.num_classes)
    return Plan(
        config,
        model,
        *make_training(config, num_steps, steps_per_epoch),
        train_set,
        eval_set,
        train_view,
        eval_view,
        num_steps,
        steps_per_epoch,
        every,
        frozen,
    )


def make_model(config: ml_collections.ConfigDict, num_classes: int) -> Network:
    """Returns the network, its BatchNorm groups and dtype as the config says.

    Raises UserError for unknown names, for a field of the network that the run sets, and for
    float64 where jax does not have it switched on.
    """
    if config.dtype == 'float64' and not jax.config.values['jax_enable_x64']:
        raise UserError("dtype='float64' needs the environment variable JAX_ENABLE_X64=1")
    fields = config.model_fields.to_dict()
    ours = {
        'num_classes': num_classes,
        'in_channels': config.in_channels,
        'dtype': jnp.dtype(config.dtype),
        'bn_group_size': config.bn_group_size or None,
    }
    if twice := ours.keys() & fields.keys():
        raise UserError(
            f'model_fields has {", ".join(sorted(twice))}: num_classes is that of the data, '
            'in_channels, dtype and bn_group_size are fields of the config itself'
        )
    return make_network(config.model, **ours, **fields)


def _check_model(model: nn.Module, config: ml_collections.ConfigDict) -> None:
    """Traces the network, as its fields are checked where they are used; compiles nothing."""
    shape = (1, config.image_size, config.image_size, config.in_channels)
    image = jax.ShapeDtypeStruct(shape, model.dtype)
    try:
        jax.eval_shape(lambda image: model.init(jax.random.key(0), image), image)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        fields = config.model_fields.to_dict()
        reason = str(error).splitlines()[0]
        raise UserError(f'{config.model} cannot have model_fields {fields}: {reason}') from error


def make_start(
    config: ml_collections.ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[jax.Array], TrainState]:
    """Returns the jitted `key -> state` of step 0, of the kind the config asks for."""
    return make_init(
        model,
        optimizer,
        config.image_size,
        mesh,
        shard_optimizer=config.shard_optimizer,
        average=config.ema > 0,
    )


def make_step(config: ml_collections.ConfigDict, plan: Plan, mesh: Mesh | None = None) -> TrainStep:
    """Returns the training step of a plan, with the pixels and the loss the config names.

    `mesh` is what the batch lies on; None is `data_mesh()`.
    """
    return make_train_step(
        plan.model,
        plan.optimizer,
        plan.schedule,
        mean=config.mean,
        std=config.std,
        label_smoothing=config.label_smoothing,
        seed=config.seed,
        average=config.ema,
        frozen_from=plan.frozen_from,
        accumulate=config.accumulate,
        remat=config.remat,
        shard_optimizer=config.shard_optimizer,
        mesh=mesh or data_mesh(),
    )


def open_split(config: ml_collections.ConfigDict, split: str) -> Dataset:
    """Opens 'train' or 'eval' of the config's data set."""
    return open_dataset(
        config.data,
        split,
        config.data_dir or None,
        eval_split=config.eval_split,
        seed=config.seed,
    )


def train_transform(config: ml_collections.ConfigDict) -> TrainTransform:
    """Returns the random view of a training image."""
    return TrainTransform(
        config.image_size,
        crop=config.crop,
        crop_area=config.crop_area,
        crop_aspect=config.crop_aspect,
        pad=config.pad,
        flip=config.flip,
        rotation=config.rotation,
        jitter=config.jitter,
        cutout=config.cutout,
        fill=config.fill,
        interpolation=config.interpolation,
        **_reading(config),
    )


def eval_transform(config: ml_collections.ConfigDict) -> EvalTransform:
    """Returns the one view of an image in evaluation and prediction."""
    return EvalTransform(
        config.image_size, config.eval_resize, config.interpolation, **_reading(config)
    )


def _reading(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {
        'channels': config.in_channels,
        'exif_orientation': config.exif_orientation,
        'max_pixels': config.max_pixels,
    }


def total_steps(config: ml_collections.ConfigDict, steps_per_epoch: float) -> int:
    """Returns `num_steps`, or as many as make `num_epochs`; at least one."""
    return config.num_steps or max(1, round(config.num_epochs * steps_per_epoch))


def interval(config: ml_collections.ConfigDict, what: str, steps_per_epoch: float) -> int | None:
    """Returns the steps between two of 'log', 'eval' or 'checkpoint'; None is "at the end"."""
    if steps := config[f'{what}_every_steps']:
        return steps
    epochs = config[f'{what}_every_epochs']
    return max(1, round(epochs * steps_per_epoch)) if epochs else None


def make_training(
    config: ml_collections.ConfigDict, num_steps: int, steps_per_epoch: float
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Returns the learning rate as a function of the step, and the optimiser that follows it."""
    scale = config.batch_size / config.base_batch_size if config.base_batch_size else 1.0
    schedule = make_schedule(
        config.schedule,
        config.learning_rate * scale,
        num_steps,
        warmup_steps=int(config.warmup * num_steps),
        warmup_factor=config.warmup_factor,
        drop_steps=[round(epoch * steps_per_epoch) for epoch in config.drop_epochs],
        drop_factor=config.drop_factor,
    )
    optimizer = make_optimizer(
        schedule,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        plateau=config.schedule == 'plateau',
    )
    return schedule, optimizer


def frozen_from(
    config: ml_collections.ConfigDict, num_steps: int, steps_per_epoch: float
) -> int | None:
    """Returns the number of the first step with BatchNorm frozen; None if there is no such step."""
    frozen = round(config.freeze_bn_epochs * steps_per_epoch)
    if frozen >= num_steps:
        raise UserError(
            f'freeze_bn_epochs={config.freeze_bn_epochs} is the whole run of '
            f'{num_steps / steps_per_epoch:g} epochs, whose statistics would never be taken'
        )
    return num_steps - frozen if frozen else None
