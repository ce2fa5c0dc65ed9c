"""What SE costs: parameters, multiply-adds and time (section 4 of the paper)."""

from collections.abc import Callable
from functools import partial
from timeit import timeit
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from se_flax.models import create_model, list_models, model_info, twins

# Millions without and with SE, from the paper's Tables 3 and 10; SE of the ablations has no biases.
PAPER_PARAMS = {'resnet50': (25.6, 28.1), 'mobilenet': (4.2, 4.7), 'shufflenet': (1.8, 2.4)}
TIMES = ['', '', 'batch', 'pixels', 'plain, ms', 'with SE, ms', 'SE / plain', 'middle half']
NOTE = (
    'SE / plain is the median over consecutive calls. The paper: 190 and 209 ms (1.10) for '
    'ResNet-50 forward and backward, 256 images on 8 Titan X; 164 and 167 ms (1.02) forward, one '
    'image on a CPU.'
)


def count_table() -> list[list[str]]:
    """Returns the counts of the paper's networks beside the paper's own, after a header."""
    rows = [['', 'parameters', 'paper', 'by SE', 'multiply-adds', 'paper', 'by SE']]
    for info in map(model_info, list_models()):
        if not info.paper:
            continue
        params_more = macs_more = ''
        name = info.name.removeprefix('se_')
        if name != info.name and name in list_models():
            plain = model_info(name)
            params_more = f'{100 * (info.params / plain.params - 1):+.2f} %'
            macs_more = f'{100 * (info.macs / plain.macs - 1):+.3f} %'
        printed = f'{PAPER_PARAMS[name][name != info.name]} M' if name in PAPER_PARAMS else ''
        params = [f'{info.params:,}', printed, params_more]
        paper = f'{info.paper.macs / 1e9:.3g} G' if info.paper.macs else ''
        rows.append([info.name, *params, f'{info.macs / 1e9:.3f} G', paper, macs_more])
    return rows


def measure(
    name: str, batch_size: int, image_size: int | None, dtype: Any, rounds: int = 15
) -> list[list[str]]:
    """Times a network without and with SE in turns; returns rows of TIMES as texts.

    Two more rounds warm up. Raises UserError for a network that is not registered in both forms.
    """
    pair, size = twins(name), image_size or model_info(name).input_size
    images = jnp.zeros((batch_size, size, size, 3), dtype)
    calls = [_calls(twin, images, dtype) for twin in pair]
    rows = []
    for what in calls[0]:
        seconds = np.array(
            [[timeit(call[what], number=1) for call in calls] for _ in range(rounds + 2)]
        )
        plain, se = 1e3 * np.median(seconds[2:], axis=0)
        low, ratio, high = np.percentile(seconds[2:, 1] / seconds[2:, 0], (25, 50, 75))
        times = f'{plain:.1f}', f'{se:.1f}', f'{ratio:.3f}', f'{low:.3f} to {high:.3f}'
        rows.append([name, what, str(batch_size), str(size), *times])
    return rows


def _calls(name: str, images: jax.Array, dtype: Any) -> dict[str, Callable[[], Any]]:
    model = create_model(name, dtype=dtype)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images[:1])

    def loss(params):
        own = variables | {'params': params}
        rngs = dict.fromkeys(('dropout', 'shake'), jax.random.key(0))
        logits, _ = model.apply(own, images, train=True, mutable=['batch_stats'], rngs=rngs)
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    forward, backward = jax.jit(partial(model.apply, train=False)), jax.jit(jax.grad(loss))
    return {
        'forward': lambda: jax.block_until_ready(forward(variables, images)),
        'forward + backward': lambda: jax.block_until_ready(backward(variables['params'])),
    }
