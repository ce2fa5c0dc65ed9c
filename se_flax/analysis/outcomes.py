"""Which evaluation images the network of a run is right about: `right.npy` in its workdir."""

import io

import numpy as np

from se_flax.errors import UserError
from se_flax.inference import make_evaluator, open_run
from se_flax.storage import AnyPath, atomic_write
from se_flax.training.workdir import CHECKPOINTS, finished

RIGHT = 'right.npy'


def write_right(workdir: AnyPath, data_dir: str | None = None) -> None:
    """Evaluates the last checkpoint of a finished run, once; without a checkpoint, does nothing.

    The file has a bool for each image that can be decoded, in the order of the data set. `data_dir`
    is where the data are now, by default where they were when the run began. Raises UserError if
    the checkpoint or the images are not those of the run's result.
    """
    if (workdir / RIGHT).exists() or not (workdir / CHECKPOINTS).exists():
        return
    trained, done = open_run(workdir), finished(workdir)
    if trained.step != done['step']:
        raise UserError(f'{workdir} ended at step {done["step"]}, its checkpoint {trained.step}')
    batches = make_evaluator([trained], data_dir=data_dir).batches()
    right = [results['rank'][results['mask']] < 1 for _, results in batches]
    found = np.concatenate(right)
    if len(found) != done['examples']:
        raise UserError(f'{workdir} was evaluated on {done["examples"]} images, now {len(found)}')
    file = io.BytesIO()
    np.save(file, found, allow_pickle=False)
    atomic_write(workdir / RIGHT, file.getvalue())


def read_right(workdir: AnyPath) -> np.ndarray | None:
    """Returns what `write_right` found, bool `[N]`, or None."""
    path = workdir / RIGHT
    return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) if path.exists() else None
