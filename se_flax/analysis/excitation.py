"""Statistics of a trained network's gates (section 7 of the paper, Figures 6 and 7)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from se_flax import tables
from se_flax.data import Dataset, eval_batches
from se_flax.data.dataset import Subset
from se_flax.errors import UserError
from se_flax.evaluation import normalize
from se_flax.evaluation.evaluator import Evaluator, Network
from se_flax.parallel import data_mesh, replicated, shard_batch, split, whole_batch
from se_flax.progress import Progress
from se_flax.storage import AnyPath, write_text

EXCITATION = 'excitation'  # the folder of the results in a workdir
OPEN, CLOSED = 0.95, 0.05  # a gate beyond them counts as saturated


class Block(NamedTuple):
    """An SE block of a network."""

    path: tuple[str, ...]  # of its module
    stage: int  # from 1
    params: int

    @property
    def name(self) -> str:
        """The path of the module that the block recalibrates."""
        return '/'.join(self.path[:-1]) or self.path[-1]


class Gates(NamedTuple):
    """The gates of one block over images.

    The specificity is the share of the gates' variance over images, summed over channels, that the
    class explains (eta squared). It can exceed 0 for random weights, as classes differ in texture.
    """

    block: Block
    mean: np.ndarray  # [classes, C] over the images of each class; NaN for a class without images
    std: np.ndarray
    overall_mean: np.ndarray  # [C]
    specificity: float
    shuffled: float  # the specificity by chance, with shuffled labels
    opened: float  # share above OPEN
    closed: float  # share below CLOSED

    @property
    def channels(self) -> int:
        return len(self.overall_mean)


def se_blocks(model: nn.Module, variables: Any, image_size: int) -> list[Block]:
    """Returns the blocks that sow a gate, in the order they run.

    A stage has maps of one size. Raises UserError for a network without SE.
    """
    calls = {}

    def note(call, args, kwargs, context):
        if context.method_name == '__call__' and args:
            calls[context.module.path] = jnp.shape(args[0])[1:3]
        return call(*args, **kwargs)

    def apply(variables, image):
        return model.apply(variables, image, train=False, mutable=['intermediates'])[1]

    image = jax.ShapeDtypeStruct((1, image_size, image_size, model.in_channels), jnp.float32)
    with nn.intercept_methods(note):
        sown = jax.eval_shape(apply, variables, image).get('intermediates', {})
    paths = {path[:-1] for path in flatten_dict(sown) if path[-1] == 'gate'}
    if not paths:
        raise UserError('this network has no SE block')
    params = flatten_dict(variables['params'])
    blocks, seen, stage = [], None, 0
    for path, size in calls.items():
        if path in paths:
            stage += size != seen
            seen = size
            own = sum(p.size for at, p in params.items() if at[: len(path)] == path)
            blocks.append(Block(path, stage, own))
    return blocks


def shown(blocks: Sequence[Block]) -> list[Block]:
    """Returns the blocks of the figures: the last of each stage and all of the last stage."""
    last = {block.stage: block for block in blocks}
    return [b for b in blocks if b is last[b.stage] or b.stage == blocks[-1].stage]


def pick(labels: np.ndarray, samples: int) -> np.ndarray:
    """Returns the positions of the first `samples` examples of each class, ascending."""
    classes = np.unique(labels[labels >= 0])  # -1 cannot be read
    if not len(classes):
        raise UserError('no record of the data set can be read')
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:samples] for c in classes]))


def measure_gates(
    network: Network,
    blocks: Sequence[Block],
    dataset: Dataset,
    samples: int,
    *,
    batch_size: int,
    **loading: Any,
) -> list[Gates]:
    """Returns the gates of each block over the first `samples` images of each class.

    The gates of a block without a squeeze are averaged over the map. `batch_size` is rounded up to
    a multiple of the devices; `loading` are other arguments of `eval_batches`.
    """
    labels = dataset.labels()
    positions = pick(labels, samples)
    labels = labels[positions]
    shuffled = np.random.default_rng(0).permutation(labels)
    picked = Subset(dataset.name, dataset.split, dataset.class_names, dataset, positions)

    def gates(variables, images):
        images = normalize(images, network.mean, network.std, network.model.dtype)
        _, sown = network.model.apply(variables, images, train=False, mutable=['intermediates'])
        sown = flatten_dict(sown['intermediates'])
        return [sown[*block.path, 'gate'][0].mean((1, 2)).astype(jnp.float32) for block in blocks]

    mesh = data_mesh()
    batch_size = whole_batch(mesh, batch_size)
    whole = replicated(mesh)
    gates = jax.jit(gates, in_shardings=(whole, split(mesh)), out_shardings=whole)
    variables = jax.device_put(network.variables, whole)
    sums = [Sums(dataset.num_classes) for _ in blocks]
    done = 0
    with Progress() as progress:
        for batch in eval_batches(picked, network.view, batch_size=batch_size, **loading):
            found = jax.device_get(gates(variables, shard_batch(mesh, batch)['image']))
            rows = np.flatnonzero(batch['mask'])
            for block_sums, gate in zip(sums, found, strict=True):
                block_sums.add(gate[rows], labels[done + rows], shuffled[done + rows])
            done = min(done + len(batch['mask']), len(labels))
            progress.show(done, len(labels))
    return [s.gates(block) for s, block in zip(sums, blocks, strict=True)]


class Sums:
    """Adds up the gates of a block by class, under the true labels and under shuffled ones."""

    def __init__(self, num_classes: int):
        self._num_classes = num_classes
        zero: Any = 0  # arrays after the first `add`
        self._count = self._sum = self._squares = self._opened = self._closed = zero

    def add(self, gates: np.ndarray, labels: np.ndarray, shuffled: np.ndarray) -> None:
        """Adds the gates `[B, C]` of images."""
        gates = gates.astype(np.float64)
        one_hot = np.eye(self._num_classes)[np.stack([labels, shuffled])].swapaxes(1, 2)
        self._count += one_hot.sum(2)[..., None]  # [2, classes, 1]
        self._sum += one_hot @ gates  # [2, classes, C]
        self._squares += one_hot[0] @ gates**2
        self._opened += (gates > OPEN).sum()
        self._closed += (gates < CLOSED).sum()

    def gates(self, block: Block) -> Gates:
        """Returns the statistics of all gates so far."""
        images = self._count[0].sum()
        overall = self._sum[0].sum(0) / images
        total = (self._squares.sum(0) - images * overall**2).sum()
        with np.errstate(invalid='ignore'):  # classes without images
            mean = self._sum[0] / self._count[0]
            std = np.sqrt(np.maximum(self._squares / self._count[0] - mean**2, 0))
            between = np.nansum(self._sum**2 / self._count, axis=1) - images * overall**2
        explained = between.sum(1) / total if total > 0 else np.zeros(2)
        saturated = np.array([self._opened, self._closed]) / (images * len(overall))
        return Gates(block, mean, std, overall, *explained.tolist(), *saturated.tolist())


class Removal(NamedTuple):
    """Results of `evaluate` for a network without the SE blocks of its last stage."""

    blocks: tuple[str, ...]
    params: int  # of these blocks
    all_params: int
    whole: dict[str, float]  # with the blocks
    without: dict[str, float]  # not trained again
    constant: dict[str, float]  # each gate at its mean over the images, as BatchNorm could scale


def remove_last_stage(
    network: Network, gates: Sequence[Gates], dataset: Dataset, **loading: Any
) -> Removal:
    """Evaluates a network with and without the SE blocks of its last stage, on all examples."""
    last = {g.block.path: g for g in gates if g.block.stage == gates[-1].block.stage}

    def result(instead=None):
        def gated(call, args, kwargs, context):
            path = context.module.path
            if instead and path in last and context.method_name == '__call__':
                return instead(args[0], last[path].overall_mean)
            return call(*args, **kwargs)

        evaluator = Evaluator([network], dataset, data_mesh(), **loading)
        with nn.intercept_methods(gated), Progress() as progress:
            return evaluator.run(seen=progress.show).summary()

    return Removal(
        tuple(g.block.name for g in last.values()),
        sum(g.block.params for g in last.values()),
        sum(leaf.size for leaf in jax.tree.leaves(network.variables['params'])),
        result(),
        result(lambda x, mean: x),
        result(lambda x, mean: x * jnp.asarray(mean, x.dtype).reshape(1, 1, 1, -1)),
    )


def write(
    out: AnyPath,
    name: str,
    dataset: Dataset,
    samples: int,
    gates: Sequence[Gates],
    removal: Removal,
) -> str:
    """Writes `excitation.csv` and `excitation.md`; returns the latter's text."""
    lines = (
        (g.block.name, channel, label, f'{mean:.6g}', f'{std:.6g}')
        for g in gates
        for means, stds, label in zip(g.mean, g.std, dataset.class_names, strict=True)
        for channel, (mean, std) in enumerate(zip(means, stds, strict=True))
    )
    text = tables.csv_text(('block', 'channel', 'class', 'mean', 'std'), lines)
    write_text(out / 'excitation.csv', text)

    head = ['block', 'channels', 'mean gate', 'class explains', 'labels shuffled']
    rows = [[*head, f'above {OPEN}', f'below {CLOSED}']]
    for g in gates:
        shares = g.specificity, g.shuffled, g.opened, g.closed
        mean = f'{g.overall_mean.mean():.3f}'
        percent = (f'{100 * share:.1f} %' for share in shares)
        rows.append([g.block.name, str(g.channels), mean, *percent])
    removed = [['', 'top-1 error', 'top-5 error', 'parameters']]
    for what, result, fewer in (
        ('whole network', removal.whole, 0),
        ('without these blocks', removal.without, removal.params),
        ('constant mean gates', removal.constant, removal.params),
    ):
        errors = (f'{100 * (1 - result[key]):.2f} %' for key in ('top1', 'top5'))
        removed.append([what, *errors, f'{removal.all_params - fewer:,}'])
    page = f"""# Gates of {name} on {dataset.name}

Up to {samples} images of each class. "Class explains": the share of the gates' variance over
images, summed over channels, that lies between the classes (eta squared); with the labels shuffled
it is what this number of images and classes gives by chance.

{tables.markdown(rows)}

## Without SE in the last stage ({', '.join(removal.blocks)})

On all {removal.whole['examples']:,} evaluation images, without retraining:

{tables.markdown(removed)}
"""
    write_text(out / 'excitation.md', page)
    return page
