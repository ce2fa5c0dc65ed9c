"""A run in one paragraph, printed before its first step."""

import textwrap


def run_summary(
    *,
    model: str,
    parameters: int,
    dtype: str,
    device_kind: str,
    num_devices: int,
    batch_size: int,
    bn_group_size: int | None,
    num_steps: int,
    steps_per_epoch: float,
    data: str,
    train_examples: int,
    eval_examples: int,
    num_classes: int,
    optimizer_bytes: tuple[int, int],
) -> str:
    """Returns what is trained, where and on what, in lines of at most 100 characters.

    `batch_size` is global; `dtype` names the arithmetic's type; `bn_group_size` counts the images
    that share BatchNorm statistics, None for the whole batch; `optimizer_bytes` are those of the
    optimiser's state, and of a device's part of it.
    """
    share = batch_size // num_devices
    shares = f', {share:,} a device' if num_devices > 1 else ''
    group = bn_group_size or batch_size
    spans = ''
    if share % group:
        spans = ' and span devices, which costs a collective a layer'
    elif num_devices > 1:
        spans = ', each within a device'
    whole, part = optimizer_bytes
    sentences = [
        f'Model: {model}, {_count(parameters, "parameter")}, computed in {dtype}.',
        f'Devices: {num_devices} ({device_kind}).',
        f'Batch: {_count(batch_size, "image")}{shares};',
        f'groups of {group:,} share BatchNorm statistics{spans}.',
        *([f'Optimiser: {_bytes(whole)}, {_bytes(part)} a device.'] if part < whole else []),
        f'Steps: {num_steps:,}, or {num_steps / steps_per_epoch:.4g} epochs'
        f' of {steps_per_epoch:,.6g} steps.',
        f'Data: {data}, {train_examples:,} training and'
        f' {_count(eval_examples, "evaluation image")} in {_count(num_classes, "class", "es")}.',
    ]
    return textwrap.fill(' '.join(sentences), 100)


def _count(n: int, noun: str, plural: str = 's') -> str:
    return f'{n:,} {noun}{"" if n == 1 else plural}'


def _bytes(n: int) -> str:
    return f'{n / 1e6:,.3g} MB'
