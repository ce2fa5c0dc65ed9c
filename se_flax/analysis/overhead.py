"""What SE costs: parameters, multiply-adds and time (section 4 of the paper)."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from se_flax.errors import check_known
from se_flax.models import create_model, list_models, model_info

# As printed, of the paper's Tables 3 and 10; the ablations' SE has no biases.
PAPER_PARAMS = {
    'resnet50': 25.6e6,
    'se_resnet50': 28.1e6,
    'mobilenet': 4.2e6,
    'se_mobilenet': 4.7e6,
    'shufflenet': 1.8e6,
    'se_shufflenet': 2.4e6,
}


def count_table() -> list[list[str]]:
    """Returns counts of every network of the paper beside the paper's, as texts, head first."""
    head = ['', 'parameters', 'paper', 'by SE', 'multiply-adds', 'paper', 'by SE']
    lines = [head]
    for name in list_models():
        info = model_info(name)
        if not info.paper:
            continue
        twin = name.removeprefix('se_')
        params_more = macs_more = ''
        if twin != name and twin in list_models():
            plain = model_info(twin)
            params_more = f'{100 * (info.params / plain.params - 1):+.2f} %'
            macs_more = f'{100 * (info.macs / plain.macs - 1):+.3f} %'
        printed = PAPER_PARAMS.get(name)
        lines.append(
            [
                name,
                f'{info.params:,}',
                f'{printed / 1e6:.1f} M' if printed else '',
                params_more,
                f'{info.macs / 1e9:.3f} G',
                f'{info.paper.macs / 1e9:.3g} G' if info.paper.macs else '',
                macs_more,
            ]
        )
    return lines


NOTE = (
    'SE / plain is the median over neighbouring calls. The paper: 190 and 209 ms (1.10) for '
    'ResNet-50 forward and backward, 256 images on 8 Titan X; 164 and 167 ms (1.02) forward, one '
    'image on a CPU.'
)


class Timing(NamedTuple):
    """Milliseconds of a call with `batch_size` images, of a network and its twin with SE.

    `ratio` is the median over rounds of theirs, a round's two calls being neighbours in time.
    """

    name: str
    what: str
    batch_size: int
    image_size: int
    plain: float
    se: float
    ratio: float
    spread: tuple[float, float]  # the quarter points of the ratio


def measure(
    name: str, *, batch_size: int, image_size: int | None, dtype: Any, rounds: int = 15
) -> list[Timing]:
    """Returns the times of `forward` and `forward + backward` on this machine's devices.

    Args:
        name: of the network without SE.
        batch_size: images.
        image_size: pixels; None is the network's own.
        dtype: of the maps.
        rounds: of one call each, interleaved, after two that do not count.

    Raises UserError for a network without a twin.
    """
    for twin in (name, f'se_{name}'):
        check_known('network', twin, list_models())
    size = image_size or model_info(name).input_size
    images = jnp.zeros((batch_size, size, size, 3), dtype)
    calls = [_calls(twin, images, dtype) for twin in (name, f'se_{name}')]
    timings = []
    for what in ('forward', 'forward + backward'):
        seconds = np.array([[_seconds(call[what]) for call in calls] for _ in range(rounds + 2)])[
            2:
        ]
        ratios = seconds[:, 1] / seconds[:, 0]
        plain, se = 1e3 * np.median(seconds, axis=0)
        spread = tuple(np.percentile(ratios, (25, 75)).tolist())
        ratio = float(np.median(ratios))
        timings.append(Timing(name, what, batch_size, size, float(plain), float(se), ratio, spread))
    return timings


def _calls(name: str, images: jax.Array, dtype: Any) -> dict[str, Callable[[], Any]]:
    model = create_model(name, dtype=dtype)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images[:1])

    def loss(params):
        own = variables | {'params': params}
        rngs = dict.fromkeys(('dropout', 'shake'), jax.random.key(0))
        logits, _ = model.apply(own, images, train=True, mutable=['batch_stats'], rngs=rngs)
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    return {
        'forward': partial(jax.jit(partial(model.apply, train=False)), variables, images),
        'forward + backward': partial(jax.jit(jax.grad(loss)), variables['params']),
    }


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def time_table(timings: Sequence[Timing]) -> list[list[str]]:
    """Returns timings as texts, head first."""
    head = ['', '', 'batch', 'pixels', 'plain, ms', 'with SE, ms', 'SE / plain', 'middle half']
    return [
        head,
        *(
            [
                t.name,
                t.what,
                str(t.batch_size),
                str(t.image_size),
                f'{t.plain:.1f}',
                f'{t.se:.1f}',
                f'{t.ratio:.3f}',
                '{:.3f} to {:.3f}'.format(*t.spread),
            ]
            for t in timings
        ),
    ]
