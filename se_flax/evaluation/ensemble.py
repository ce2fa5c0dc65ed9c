"""One answer to each example of several networks, of several views each."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from se_flax import models
from se_flax.data import Dataset, EvalTransform, eval_batches
from se_flax.evaluation.evaluate import label_rank, normalize
from se_flax.evaluation.protocols import AVERAGES, Protocol, Scale, cut, lay_out, places
from se_flax.parallel import replicated, shard_batch, split

TOP = 5


class Network(NamedTuple):
    """A network with its variables and what it expects: a view, then `(x - mean) / std`."""

    model: models.Network
    variables: Any
    view: EvalTransform
    mean: Sequence[float]
    std: Sequence[float]


def make_scores(
    network: Network, mesh: Mesh, protocol: Protocol, scale: Scale
) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns the jitted `(variables, canvases) -> scores`, the mean over a scale's views.

    Canvases are uint8 `[B, R, R, channels]`, scores `[B, C]`. One view after another goes through
    the network, so that any number of crops needs the memory, and the compile time, of one.
    """
    average, size = AVERAGES[protocol.average], scale.size
    where = places(protocol.crops, scale.canvas.image_size, size)

    def scores(variables, canvases):
        canvases = lay_out(protocol.crops, canvases, size)

        def of_view(place):
            images = cut(canvases, place, size)
            images = normalize(images, network.mean, network.std, network.model.dtype)
            return average.of_logits(network.model.apply(variables, images, train=False))

        return average.mean(jax.lax.map(of_view, where))

    return jax.jit(scores, in_shardings=(replicated(mesh), split(mesh)), out_shardings=split(mesh))


def make_judge(mesh: Mesh, average: str) -> Callable[..., dict[str, jax.Array]]:
    """Returns the jitted `(scores, label, mask) -> results` of a batch.

    Args:
        mesh: of the batch; the results are on each of its devices whole.
        average: a key of AVERAGES.

    The results are `loss`, the sum over what the mask has, `label` and `mask` as they came,
    `rank` `[B]` of the label among the classes, 0 for the first, and the five most probable
    classes, `top` `[B, 5]`, with their `probability`.
    """
    _, mean, to_log_probs = AVERAGES[average]

    def judge(scores, label, mask):
        log_probs = to_log_probs(mean(jnp.stack(scores)))
        loss = -jnp.take_along_axis(log_probs, label[:, None], axis=1)[:, 0]
        best, top = jax.lax.top_k(log_probs, min(TOP, log_probs.shape[1]))
        return {
            'loss': jnp.where(mask, loss, 0).sum(),
            'label': label,
            'mask': mask,
            'rank': label_rank(log_probs, label),
            'top': top,
            'probability': jnp.exp(best),
        }

    return jax.jit(judge, in_shardings=split(mesh), out_shardings=replicated(mesh))


def judge_batches(
    networks: Sequence[Network],
    dataset: Dataset,
    protocol: Protocol,
    mesh: Mesh,
    *,
    batch_size: int,
    num_threads: int | None = None,
    max_corrupt: float | None = 0.01,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields `make_judge`'s results of each batch, the mean over all networks and views.

    Batch k has the examples from `k * batch_size` on. Each distinct canvas is one pass of
    `eval_batches`, all in step and with their share of the threads: four scales decode an image
    four times. A device holds two batches of canvases and the maps of one view.
    """
    looks = []  # variables, canvas, scores
    for network in networks:
        variables = jax.device_put(network.variables, replicated(mesh))
        for scale in protocol.scales(network.view):
            looks.append((variables, scale.canvas, make_scores(network, mesh, protocol, scale)))
    canvases = list(dict.fromkeys(canvas for _, canvas, _ in looks))
    threads = (num_threads or len(os.sched_getaffinity(0))) // len(canvases)
    streams = [
        eval_batches(
            dataset,
            canvas,
            batch_size=batch_size,
            num_threads=max(1, threads),
            max_corrupt=max_corrupt,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for canvas in canvases
    ]
    judge = make_judge(mesh, protocol.average)
    behind = None
    for batches in zip(*streams, strict=True):
        shown = dict(zip(canvases, (shard_batch(mesh, b) for b in batches), strict=True))
        scores = [look(variables, shown[canvas]['image']) for variables, canvas, look in looks]
        truth = shown[canvases[0]]
        results = judge(scores, truth['label'], truth['mask'])
        # One behind: the host decodes while the devices work, and does not run away from them.
        if behind is not None:
            yield jax.device_get(behind)
        behind = results
    yield jax.device_get(behind)


class Tally:
    """Counts what was right, of each class.

    `counts`, int64 `[C, 3]`, has the examples of each class, and those whose label is the first,
    or among the first five.
    """

    def __init__(self, num_classes: int):
        self.counts = np.zeros((num_classes, 3), np.int64)
        self._loss = 0.0

    def add(self, results: dict[str, np.ndarray]) -> None:
        """Counts `make_judge`'s results of a batch."""
        mask, rank = results['mask'], results['rank']
        for column, counted in enumerate((mask, mask & (rank < 1), mask & (rank < TOP))):
            labels = results['label'][counted]
            self.counts[:, column] += np.bincount(labels, minlength=len(self.counts))
        self._loss += results['loss'].item()

    def summary(self) -> dict[str, float]:
        """Returns mean `loss`, `top1` and `top5` (shares, 0 to 1) and the number of `examples`."""
        examples, top1, top5 = self.counts.sum(0).tolist()
        return {
            'loss': self._loss / examples,
            'top1': top1 / examples,
            'top5': top5 / examples,
            'examples': examples,
        }
