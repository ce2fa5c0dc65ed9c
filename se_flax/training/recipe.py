"""From the fields of a config to the objects of a run."""

import dataclasses
import json
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from se_flax.data import Dataset, EvalTransform, TrainTransform, decode_all, draw, open_dataset
from se_flax.errors import Problems, UserError
from se_flax.models import Network
from se_flax.training import config as configs
from se_flax.training import fine_tune
from se_flax.training.mixing import Mixing
from se_flax.training.optimizer import make_optimizer, make_schedule
from se_flax.training.profile import check_steps
from se_flax.training.state import TrainState, make_init
from se_flax.training.step import TrainStep, make_train_step

View = TypeVar('View', TrainTransform, EvalTransform)
# Fields that `make_train_step` and `make_optimizer` take under the same name.
OF_STEP = ('mean', 'std', 'label_smoothing', 'loss', 'bce_threshold', 'seed', 'accumulate')
OF_STEP += ('remat', 'shard_optimizer')
OF_OPTIMIZER = ('optimizer', 'momentum', 'nesterov', 'betas', 'square_decay', 'epsilon')
OF_OPTIMIZER += ('weight_decay', 'clip_norm')


class Plan(NamedTuple):
    """Everything that a run needs."""

    config: ConfigDict  # with the values of its weights file in place of None
    model: Network
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    train_set: Dataset
    eval_set: Dataset
    train_view: TrainTransform
    eval_view: EvalTransform
    num_steps: int
    steps_per_epoch: float
    every: dict[str, int | None]  # steps between two 'log', 'eval' or 'checkpoint'
    frozen_from: int | None  # first step with BatchNorm frozen

    def due(self, what: str, step: int) -> bool:
        """Returns whether a 'log', 'eval' or 'checkpoint' follows a step; the last has all."""
        every = self.every[what]
        return step == self.num_steps or (every is not None and step % every == 0)


def make_plan(config: ConfigDict, num_devices: int) -> Plan:
    """Makes what a config names, without compiling; a UserError lists everything wrong."""
    problems = Problems()
    configs.check_fields(config, problems)
    of_weights = 'init_from', 'adapt_channels', *configs.OF_WEIGHTS
    config = problems.check(of_weights, fine_tune.fill_from_weights, config) or config
    configs.check_values(config, num_devices, problems)
    network = 'model', 'model_fields', 'image_size', 'in_channels', 'dtype', 'bn_group_size'
    problems.check(network, _check_model, config)
    if config.get('init_from'):
        fine_tune.check_weights(config, problems)
    train_view, eval_view = (
        problems.check(_view_fields(view).values(), make_view, view, config)
        for view in (TrainTransform, EvalTransform)
    )
    data = 'data', 'data_dir', 'eval_split', 'train_examples', 'seed'
    train_set, eval_set = (
        problems.check(data, open_split, config, split) for split in ('train', 'eval')
    )
    problems.raise_all()
    if config.init_from:
        fine_tune.keeps_head(config, train_set.class_names)
    if config.cache:
        train_set, eval_set = (decode_all(s, eval_view.decode) for s in (train_set, eval_set))
    steps_per_epoch = len(train_set) / config.batch_size
    num_steps = total_steps(config, steps_per_epoch)
    check_steps(config.profile_steps, num_steps)
    every = {what: interval(config, what, steps_per_epoch) for what in configs.INTERVALS}
    model = make_model(config, train_set.num_classes)
    schedule, optimizer = make_training(config, num_steps, steps_per_epoch)
    images = train_set, eval_set, train_view, eval_view
    frozen = frozen_from(config, num_steps, steps_per_epoch)
    length = num_steps, steps_per_epoch
    return Plan(config, model, schedule, optimizer, *images, *length, every, frozen)


def make_model(config: ConfigDict, num_classes: int) -> Network:
    """Returns the network of a config; raises UserError for bad fields or a disabled float64."""
    if config.dtype == 'float64' and not jax.config.values['jax_enable_x64']:
        raise UserError("dtype='float64' needs the environment variable JAX_ENABLE_X64=1")
    fields = config.model_fields.to_dict()
    ours = {'num_classes': num_classes, 'in_channels': config.in_channels}
    ours |= {'dtype': jnp.dtype(config.dtype), 'bn_group_size': config.bn_group_size or None}
    if twice := ours.keys() & fields.keys():
        raise UserError(
            f'model_fields has {", ".join(sorted(twice))}: num_classes comes from the data; '
            'in_channels, dtype and bn_group_size are fields of the config itself'
        )
    return configs.make_network(config.model, **ours, **fields)


def _check_model(config: ConfigDict) -> None:
    model = make_model(config, num_classes=10)  # the data are not open yet
    fields = config.model_fields.to_dict()
    try:
        json.dumps(fields)
    except TypeError as error:
        raise UserError(
            f'model_fields {fields} cannot be kept in config.json ({error}); use numbers, texts, '
            "lists and dicts, such as {'se': {'reduction': 8}}"
        ) from None
    shape = (1, config.image_size, config.image_size, config.in_channels)
    image = jax.ShapeDtypeStruct(shape, model.dtype)
    with configs.network_errors(config.model, fields):
        # Tracing checks the fields.
        jax.eval_shape(lambda image: model.init(jax.random.key(0), image), image)


def make_start(
    config: ConfigDict, model: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[jax.Array], TrainState]:
    """Returns the jitted `key -> state` of step 0."""
    options = {'shard_optimizer': config.shard_optimizer, 'average': config.ema > 0}
    return make_init(model, optimizer, config.image_size, mesh, **options)


def make_step(plan: Plan, mesh: Mesh) -> TrainStep:
    """Returns the training step; `mesh` is that of the batch."""
    options = {name: plan.config[name] for name in OF_STEP}
    options |= {'average': plan.config.ema, 'average_warmup': plan.config.ema_warmup}
    options |= {'frozen_from': plan.frozen_from, 'mixing': make_mixing(plan.config)}
    network = plan.model, plan.optimizer, plan.schedule
    return make_train_step(*network, **options, mesh=mesh)


def make_mixing(config: ConfigDict) -> Mixing | None:
    """Returns how images are mixed, if they are."""
    if not (config.mixup or config.cutmix):
        return None
    size = config.bn_group_size or None
    return Mixing(config.mixup, config.cutmix, config.mixup_switch_prob, size)


def open_split(config: ConfigDict, split: str) -> Dataset:
    """Opens the 'train' or 'eval' images of a config; raises as `open_dataset` and `draw` do."""
    held_out = {'eval_split': config.eval_split, 'seed': config.seed}
    dataset = open_dataset(config.data, split, config.data_dir or None, **held_out)
    count = config.train_examples if split == 'train' else None
    return draw(dataset, count, config.seed) if count else dataset


def make_view(view: type[View], config: ConfigDict) -> View:
    """Returns the TrainTransform or EvalTransform with the fields of a config."""
    return view(**{name: config[field] for name, field in _view_fields(view).items()})


def _view_fields(view: type) -> dict[str, str]:
    others = {'channels': 'in_channels', 'resize': 'eval_resize'}
    return {field.name: others.get(field.name, field.name) for field in dataclasses.fields(view)}


def total_steps(config: ConfigDict, steps_per_epoch: float) -> int:
    """Returns `num_steps`, or the steps of `num_epochs`; at least 1."""
    return config.num_steps or max(1, round(config.num_epochs * steps_per_epoch))


def interval(config: ConfigDict, what: str, steps_per_epoch: float) -> int | None:
    """Returns the steps between two of 'log', 'eval' or 'checkpoint'; None for the end only."""
    if steps := config[f'{what}_every_steps']:
        return steps
    epochs = config[f'{what}_every_epochs']
    return max(1, round(epochs * steps_per_epoch)) if epochs else None


def make_training(
    config: ConfigDict, num_steps: int, steps_per_epoch: float
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Returns the learning rate as a function of the step, and the optimizer that uses it."""
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
    options = {name: config[name] for name in OF_OPTIMIZER}
    return schedule, make_optimizer(schedule, **options, plateau=config.schedule == 'plateau')


def frozen_from(config: ConfigDict, num_steps: int, steps_per_epoch: float) -> int | None:
    """Returns the first step with BatchNorm frozen, if any."""
    frozen = round(config.freeze_bn_epochs * steps_per_epoch)
    if frozen >= num_steps:
        raise UserError(
            f'freeze_bn_epochs={config.freeze_bn_epochs} is the whole run of '
            f'{num_steps / steps_per_epoch:g} epochs, which leaves no step to train BatchNorm'
        )
    return num_steps - frozen if frozen else None
