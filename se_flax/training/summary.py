"""What a run prints before its first step: a paragraph, and warnings about likely mistakes."""

import textwrap
from collections.abc import Sequence

import jax

from se_flax.training.fine_tune import other_view
from se_flax.training.recipe import Plan
from se_flax.training.state import TrainState


def run_summary(plan: Plan, state: TrainState, devices: Sequence[jax.Device]) -> str:
    """Returns what is trained, where and on what, in lines of at most 100 characters."""
    config = plan.config
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    share = config.batch_size // len(devices)
    shares = f', {share:,} per device' if len(devices) > 1 else ''
    group = config.bn_group_size or config.batch_size
    spans = ''
    if share % group:
        spans = ' and span devices, which costs a collective per layer'
    elif len(devices) > 1:
        spans = ', each within a device'
    optimizer = jax.tree.leaves(state.opt_state)
    whole = sum(leaf.nbytes for leaf in optimizer)
    part = sum(leaf.addressable_shards[0].data.nbytes for leaf in optimizer)
    split = f'Optimizer: {whole / 1e6:,.3g} MB, {part / 1e6:,.3g} MB per device.'
    sentences = [
        f'Model: {config.model}, {_count(parameters, "parameter")}, computed in {config.dtype}.',
        f'Devices: {len(devices)} ({devices[0].device_kind}).',
        f'Batch: {_count(config.batch_size, "image")}{shares};',
        f'groups of {group:,} share BatchNorm statistics{spans}.',
        *([split] if part < whole else []),
        f'Steps: {plan.num_steps:,}, or {plan.num_steps / plan.steps_per_epoch:.4g} epochs'
        f' of {plan.steps_per_epoch:,.6g} steps.',
        f'Data: {config.data}, {len(plan.train_set):,} training and'
        f' {_count(len(plan.eval_set), "evaluation image")}'
        f' in {_count(plan.train_set.num_classes, "class", "es")}.',
    ]
    return textwrap.fill(' '.join(sentences), 100)


def doubts(plan: Plan) -> list[str]:
    """Returns a line for each value of a config that is valid but almost surely a mistake."""
    c = plan.config
    lines = other_view(c) if c.init_from else []
    if 0 < max(c.mean) <= 1 or max(c.std) < 1:
        scaled = (','.join(f'{255 * v:g}' for v in values) for values in (c.mean, c.std))
        lines.append(
            f'mean={tuple(c.mean)} and std={tuple(c.std)}: pixels are 0 to 255 here; for pixels '
            'of 0 to 1 the equivalent is --config.mean={} --config.std={}'.format(*scaled)
        )
    if c.eval_resize > 2 * c.image_size:
        lines.append(
            f'eval_resize={c.eval_resize}: evaluation sees only the center, {c.image_size} pixels'
        )
    epochs = plan.num_steps / plan.steps_per_epoch
    if c.schedule == 'step' and (late := [drop for drop in c.drop_epochs if drop >= epochs]):
        lines.append(
            f'drop_epochs={tuple(c.drop_epochs)}: the run ends after {epochs:.4g} epochs, so the '
            f'rate does not fall at {", ".join(f"{drop:g}" for drop in late)}'
        )
    if c.batch_size > len(plan.train_set):
        lines.append(
            f'batch_size={c.batch_size}: a batch repeats images, as there are only '
            f'{len(plan.train_set):,} to train on'
        )
    if c.optimizer == 'adamw' and c.learning_rate > 0.03 and not c.base_batch_size:
        lines.append(
            f'learning_rate={c.learning_rate}: each step of adamw moves a weight by about that '
            'much; its recipes have 0.001 or less'
        )
    if c.ema and not c.ema_warmup and (1 - c.ema) * plan.num_steps < 1:
        lines.append(
            f'ema={c.ema}: an average over about {1 / (1 - c.ema):,.0f} steps, and the run has '
            f'{plan.num_steps:,}; the evaluated weights are mostly the initial ones'
        )
    return lines


def _count(n: int, noun: str, plural: str = 's') -> str:
    return f'{n:,} {noun}{"" if n == 1 else plural}'
