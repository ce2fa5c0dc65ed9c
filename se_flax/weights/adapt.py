"""Weights for another head, or for images with other channels."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from se_flax.errors import UserError, check_at_least, check_known
from se_flax.weights.info import Preprocessing, WeightsInfo

HEADS = ('keep', 'drop')
HEAD = 'head'
# The first convolution of each family.
FIRST = ('conv_stem', 'conv_stem1', 'conv1', 'conv1_1', 'conv_1a')


def adapt(
    info: WeightsInfo, variables: Mapping[str, Any], head: str, in_channels: int | None
) -> tuple[WeightsInfo, dict[str, Any]]:
    """Returns the weights without their head, for other channels, or both, and what they then are.

    One channel gets the sum of the first kernel over its channels, so that a gray image says what
    it said as RGB. Any other number repeats them in order, scaled by old / new number, so that the
    response keeps its size; both as timm does. Mean and standard deviation of the pixels are
    averaged and repeated alike.

    Args:
        info, variables: of the weights; neither is changed.
        head: 'keep', or 'drop' for the network with `num_classes=0`.
        in_channels: of the images; None keeps the number.

    Raises UserError for another `head` and for less than a channel.
    """
    check_known('head', head, HEADS)
    params = dict(variables['params'])
    if head == 'drop':
        params.pop(HEAD, None)
        info = info._replace(num_classes=0, class_names=())
    if in_channels is not None:
        check_at_least('in_channels', in_channels, 1)
        name = next((name for name in FIRST if name in params), None)
        if name is None:
            raise UserError(f'{info.model} has no first convolution named {", ".join(FIRST)}')
        kernel = _adapted(params[name]['kernel'], in_channels)
        params[name] = {**params[name], 'kernel': kernel}
        info = info._replace(
            preprocessing=for_channels(info.preprocessing, in_channels),
            fields={**info.fields, 'in_channels': in_channels},
        )
    return info, {**variables, 'params': params}


def for_channels(view: Preprocessing, channels: int) -> Preprocessing:
    """Returns the view with a mean and deviation for each of so many channels.

    That of one is the mean of those there are; more repeat them.
    """

    def spread(values):
        if channels == 1:
            return (sum(values) / len(values),)
        return tuple(values[i % len(values)] for i in range(channels))

    return view._replace(mean=spread(view.mean), std=spread(view.std))


def _adapted(kernel, channels: int):
    given = kernel.shape[2]
    if channels == given:
        return kernel
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    return kernel[:, :, np.arange(channels) % given] * np.float32(given / channels)
