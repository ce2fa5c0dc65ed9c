"""Evaluates one network, or the average of several, on every example of a data set."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from se_flax import models
from se_flax.data import Dataset, EvalTransform, eval_batches
from se_flax.data.dataset import cores
from se_flax.errors import check_at_least
from se_flax.evaluation import protocols
from se_flax.evaluation.metrics import label_rank, normalize
from se_flax.evaluation.predictions import Predictions
from se_flax.parallel import replicated, shard_batch, split, whole_batch

TOP = 5
Seen = Callable[[int, int], None]  # takes the number of examples done and the total


class Network(NamedTuple):
    """A model with its variables and preprocessing: `view`, then `(x - mean) / std`."""

    model: models.Network
    variables: Any  # None if each call of an `Evaluator` gives them
    view: EvalTransform
    mean: Sequence[float]
    std: Sequence[float]


def make_scores(
    network: Network, mesh: Mesh, protocol: protocols.Protocol, scale: protocols.Scale
) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns the jitted `(variables, canvases) -> scores`, the average over a scale's views.

    Canvases are uint8 `[B, R, R, channels]`, scores `[B, C]`. The views run one after another, with
    the memory and the compile time of one.
    """
    average, size = protocols.AVERAGES[protocol.average], scale.size
    where = protocols.places(protocol.crops, scale.canvas.image_size, size)

    def scores(variables, canvases):
        canvases = protocols.lay_out(protocol.crops, canvases, size)

        def of_view(place):
            images = protocols.cut(canvases, place, size)
            images = normalize(images, network.mean, network.std, network.model.dtype)
            return average.of_logits(network.model.apply(variables, images, train=False))

        return average.mean(jax.lax.map(of_view, where))

    return jax.jit(scores, in_shardings=(replicated(mesh), split(mesh)), out_shardings=split(mesh))


def judge(
    average: protocols.Average, scores: Sequence[jax.Array], label: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Compares the average of scores, each `[B, C]`, with the labels.

    Returns `loss`, summed over `mask`; `label` and `mask`; the `rank` `[B]` of the label; the five
    most probable classes, `top` `[B, 5]`, and their `probability`.
    """
    log_probs = average.log_probs(average.mean(jnp.stack(scores)))
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


class Evaluator:
    """Averages networks and views, and compares with the labels; compiles once for all calls.

    Each distinct canvas of the networks' scales is one pass over the data set; the passes share the
    threads. A device holds two batches of canvases and the activations of one view. `batch_size` is
    rounded up to a multiple of the devices. Raises UserError if it is below 1, and if the protocol
    does not fit a network.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        dataset: Dataset,
        mesh: Mesh,
        protocol: protocols.Protocol = protocols.OWN_VIEW,
        *,
        batch_size: int,
        num_threads: int | None = None,
        max_corrupt: float | None = 0.01,
    ):
        check_at_least('batch_size', batch_size, 1)
        self._batch_size = whole_batch(mesh, batch_size)
        self._networks, self._dataset, self._mesh = networks, dataset, mesh
        self._scores = [  # the network's index, the canvas, the function
            (i, scale.canvas, make_scores(network, mesh, protocol, scale))
            for i, network in enumerate(networks)
            for scale in protocol.scales(network.view)
        ]
        self._judge = jax.jit(
            partial(judge, protocols.AVERAGES[protocol.average]),
            in_shardings=split(mesh),
            out_shardings=replicated(mesh),
        )
        canvases = dict.fromkeys(canvas for _, canvas, _ in self._scores)
        threads = (num_threads or cores()) // len(canvases)
        load = partial(
            eval_batches,
            dataset,
            batch_size=self._batch_size,
            num_threads=max(1, threads),
            max_corrupt=max_corrupt,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self._streams = {canvas: partial(load, canvas) for canvas in canvases}

    def batches(
        self,
        variables: Sequence[Any] | None = None,
        *,
        predictions: Predictions | None = None,
        seen: Seen | None = None,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yields the index of each batch's first example and the results of `judge`.

        `variables` replace the networks' own; `predictions`, to be written by the caller, collects
        the results; `seen` is called with the number of examples done and the total.
        """
        if variables is None:
            variables = [network.variables for network in self._networks]
        variables = jax.device_put(variables, replicated(self._mesh))
        total = len(self._dataset)
        for i, results in enumerate(_one_behind(self._results(variables))):
            first = i * self._batch_size
            if predictions:
                predictions.add(self._dataset, first, results)
            yield first, results
            if seen:
                seen(min(first + self._batch_size, total), total)

    def _results(self, variables):
        streams = [stream() for stream in self._streams.values()]
        for batches in zip(*streams, strict=True):
            shards = [shard_batch(self._mesh, batch) for batch in batches]
            shown = dict(zip(self._streams, shards, strict=True))
            scores = [f(variables[i], shown[canvas]['image']) for i, canvas, f in self._scores]
            yield self._judge(scores, shards[0]['label'], shards[0]['mask'])

    def run(self, variables: Sequence[Any] | None = None, **options: Any) -> 'Evaluation':
        """Returns the result over all examples; takes the arguments of `batches`."""
        evaluation = Evaluation(self._dataset)
        for _, results in self.batches(variables, **options):
            evaluation.add(results)
        return evaluation


def _one_behind(results):
    # The host decodes while the devices compute, but never runs far ahead of them.
    pending = []
    for result in results:
        pending.append(result)
        if len(pending) > 1:
            yield jax.device_get(pending.pop(0))
    yield from jax.device_get(pending)


class Evaluation:
    """The result of networks on a data set.

    `counts`, int64 `[C, 3]`: for each class the number of examples, and of those whose label is the
    most probable class, and one of the five most probable.
    """

    def __init__(self, dataset: Dataset):
        self.data, self.class_names = dataset.name, dataset.class_names
        self.counts = np.zeros((dataset.num_classes, 3), np.int64)
        self._loss = 0.0

    def add(self, results: dict[str, np.ndarray]) -> None:
        """Adds a batch's results of `judge`."""
        mask, rank = results['mask'], results['rank']
        for column, counted in enumerate((mask, mask & (rank < 1), mask & (rank < TOP))):
            labels = results['label'][counted]
            self.counts[:, column] += np.bincount(labels, minlength=len(self.counts))
        self._loss += results['loss'].item()

    def summary(self) -> dict[str, float]:
        """Returns mean `loss`, `top1` and `top5` (shares, 0 to 1) and the number of `examples`."""
        examples, top1, top5 = self.counts.sum(0).tolist()
        means = {'loss': self._loss / examples, 'top1': top1 / examples, 'top5': top5 / examples}
        return means | {'examples': examples}
