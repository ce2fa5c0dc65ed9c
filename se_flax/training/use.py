"""What a workdir, finished or not, or a weights file is good for."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from se_flax.data import DecodeError, EvalTransform, decode, eval_batches, open_dataset
from se_flax.errors import MissingError, UserError
from se_flax.evaluation import evaluate, make_eval_step, normalize
from se_flax.models import create_model
from se_flax.parallel import data_mesh
from se_flax.training.recipe import eval_transform
from se_flax.training.workdir import Run, load_run

WEIGHTS_BATCH = 64  # a device's, in evaluating a weights file


class Trained(NamedTuple):
    """A network with its variables, the images it takes, and its class names if they are known."""

    model: nn.Module
    variables: Any
    view: EvalTransform
    mean: Sequence[float]
    std: Sequence[float]
    class_names: tuple[str, ...]


def evaluate_run(
    workdir: pathlib.Path, data: str | None = None, data_dir: str | None = None
) -> dict[str, Any]:
    """Evaluates the newest checkpoint on every example of the eval split, once each.

    Args:
        workdir: of a run; it may still be going on.
        data: another data set with the same classes; None is the run's own.
        data_dir: of tfds; None is the run's own.

    Returns:
        `step`, `loss`, `top1`, `top5` (shares, 0 to 1), `examples` and `data`.
    """
    run = load_run(workdir)
    config = run.config
    result = _evaluate(
        _of_run(run),
        data or config.data,
        data_dir or config.data_dir or None,
        batch_size=config.eval_batch_size,
        num_threads=config.num_threads or None,
        max_corrupt=config.max_corrupt,
    )
    return {'step': run.step, **result}


def evaluate_weights(path: pathlib.Path, data: str, data_dir: str | None = None) -> dict[str, Any]:
    """Evaluates a weights file, with the preprocessing it names, on every example of a set.

    Returns what `evaluate_run` does, without `step`. Raises UserError where the set has other
    classes than the file names, or another number of them.
    """
    return _evaluate(
        _of_weights(path), data, data_dir, batch_size=WEIGHTS_BATCH * jax.device_count()
    )


def _evaluate(
    trained: Trained, data: str, data_dir: str | None, *, batch_size: int, **loading
) -> dict[str, Any]:
    dataset = open_dataset(data, 'eval', data_dir)
    _check_classes(trained, data, dataset.class_names)
    mesh = data_mesh()
    batch_size = -(-batch_size // mesh.size) * mesh.size
    batches = eval_batches(dataset, trained.view, batch_size=batch_size, **loading)
    eval_step = make_eval_step(trained.model, mesh, mean=trained.mean, std=trained.std)
    return {'data': data, **evaluate(eval_step, trained.variables, batches, mesh)}


def _check_classes(trained: Trained, data: str, names: tuple[str, ...]) -> None:
    ours = trained.class_names
    if ours and names != ours:
        raise UserError(
            f'{data} has other classes ({", ".join(names[:5])}, ...) than the network '
            f'({", ".join(ours[:5])}, ...)'
        )
    if len(names) != trained.model.num_classes:
        raise UserError(f'{data} has {len(names)} classes, the network {trained.model.num_classes}')


def predict(
    workdir: pathlib.Path, images: Sequence[pathlib.Path], top: int = 5
) -> Iterator[list[tuple[str, float]]]:
    """Yields the most probable classes of each image file, with their probabilities, in order.

    Raises MissingError or UserError for the first image that is not there or cannot be decoded,
    before the network is loaded.
    """
    decoded = [_read(path) for path in images]
    return _predict(_of_run(load_run(workdir)), decoded, top)


def predict_weights(
    path: pathlib.Path, images: Sequence[pathlib.Path], top: int = 5
) -> Iterator[list[tuple[str, float]]]:
    """Does the same as `predict` with a weights file; unnamed classes are called by number."""
    decoded = [_read(path) for path in images]
    return _predict(_of_weights(path), decoded, top)


def save_run_weights(workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the newest checkpoint's network, with what it expects, to a weights file.

    Raises as `load_run` and `save_weights` do.
    """
    from se_flax.weights import Preprocessing, save_weights

    run = load_run(workdir)
    c = run.config
    view = Preprocessing(c.image_size, c.eval_resize, c.interpolation, tuple(c.mean), tuple(c.std))
    fields = c.model_fields.to_dict()
    save_weights(out, c.model, run.variables, view, fields=fields, class_names=run.class_names)


def _predict(
    trained: Trained, images: Sequence[np.ndarray], top: int
) -> Iterator[list[tuple[str, float]]]:
    model, size = trained.model, trained.view.image_size
    names = trained.class_names or [f'class {i}' for i in range(model.num_classes)]

    @jax.jit
    def probabilities(variables, image):
        image = normalize(image, trained.mean, trained.std, model.dtype)
        return jax.nn.softmax(model.apply(variables, image, train=False))[0]

    for image in images:
        out = np.empty((1, size, size, 3), np.uint8)
        trained.view(image, None, out[0])
        p = np.asarray(probabilities(trained.variables, out))
        yield [(names[i], float(p[i])) for i in np.argsort(-p)[:top]]


def _of_run(run: Run) -> Trained:
    config = run.config
    view = eval_transform(config)
    return Trained(run.model, run.variables, view, config.mean, config.std, run.class_names)


def _of_weights(path: pathlib.Path) -> Trained:
    from se_flax.weights.store import read_weights  # its extra is not needed for a workdir

    info, variables = read_weights(path)
    model = create_model(info.model, info.num_classes, **info.fields)
    images = info.preprocessing
    view = EvalTransform(images.image_size, images.resize, images.interpolation)
    return Trained(model, variables, view, images.mean, images.std, info.class_names)


def _read(path: pathlib.Path) -> np.ndarray:
    if not path.is_file():
        near = [p.name for p in sorted(path.parent.glob('*')) if p.is_file()][:5]
        raise MissingError(f'no image {path}; that folder has {", ".join(near) or "no files"}')
    try:
        return decode(path.read_bytes())
    except DecodeError as error:
        raise UserError(f'cannot read image {path}: {error}') from None
