"""What a finished, or still running, workdir is good for: evaluating and predicting."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from se_flax.data import DecodeError, decode, eval_batches, open_dataset
from se_flax.errors import MissingError, UserError
from se_flax.evaluation import evaluate, make_eval_step, normalize
from se_flax.parallel import data_mesh
from se_flax.training.recipe import eval_transform
from se_flax.training.workdir import load_run


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
    data = data or config.data
    dataset = open_dataset(data, 'eval', data_dir or config.data_dir or None)
    if dataset.class_names != run.class_names:
        raise UserError(
            f'{data} has other classes ({", ".join(dataset.class_names[:5])}, ...) than the run '
            f'({", ".join(run.class_names[:5])}, ...)'
        )
    mesh = data_mesh()
    batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size
    batches = eval_batches(
        dataset,
        eval_transform(config),
        batch_size=batch_size,
        num_threads=config.num_threads or None,
        max_corrupt=config.max_corrupt,
    )
    eval_step = make_eval_step(run.model, mesh, mean=config.mean, std=config.std)
    result = evaluate(eval_step, run.variables, batches, mesh)
    return {'step': run.step, 'data': data, **result}


def predict(
    workdir: pathlib.Path, images: Sequence[pathlib.Path], top: int = 5
) -> Iterator[list[tuple[str, float]]]:
    """Yields the most probable classes of each image file, with their probabilities, in order.

    Raises MissingError or UserError for the first image that is not there or cannot be decoded,
    before the network is loaded.
    """
    decoded = [_read(path) for path in images]
    run = load_run(workdir)
    config, view = run.config, eval_transform(run.config)

    @jax.jit
    def probabilities(variables, image):
        image = normalize(image, config.mean, config.std, run.model.dtype)
        return jax.nn.softmax(run.model.apply(variables, image, train=False))[0]

    for image in decoded:
        out = np.empty((1, config.image_size, config.image_size, 3), np.uint8)
        view(image, None, out[0])
        p = np.asarray(probabilities(run.variables, out))
        yield [(run.class_names[i], float(p[i])) for i in np.argsort(-p)[:top]]


def _read(path: pathlib.Path) -> np.ndarray:
    if not path.is_file():
        near = [p.name for p in sorted(path.parent.glob('*')) if p.is_file()][:5]
        raise MissingError(f'no image {path}; that folder has {", ".join(near) or "no files"}')
    try:
        return decode(path.read_bytes())
    except DecodeError as error:
        raise UserError(f'cannot read image {path}: {error}') from None
