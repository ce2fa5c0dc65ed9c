"""Data sets by name, transforms, and batches addressed by number; needs the `train` extra."""

from se_flax.errors import extra_needed

with extra_needed():
    from se_flax.data.dataset import Dataset, decode_all, draw
    from se_flax.data.decode import DecodeError, decode
    from se_flax.data.pipeline import eval_batches, train_batches
    from se_flax.data.prepare import check, list_known, prepare
    from se_flax.data.sampling import SAMPLINGS
    from se_flax.data.sources import open_dataset
    from se_flax.data.transforms import INTERPOLATIONS, EvalTransform, TrainTransform

__all__ = [
    'INTERPOLATIONS',
    'SAMPLINGS',
    'Dataset',
    'DecodeError',
    'EvalTransform',
    'TrainTransform',
    'check',
    'decode',
    'decode_all',
    'draw',
    'eval_batches',
    'list_known',
    'open_dataset',
    'prepare',
    'train_batches',
]
