"""Data sets by name, transforms, and batches addressed by number; needs the `train` extra."""

from se_flax.errors import extra_needed

with extra_needed():
    from se_flax.data.dataset import Dataset as Dataset
    from se_flax.data.dataset import decode_all as decode_all
    from se_flax.data.dataset import draw as draw
    from se_flax.data.decode import DecodeError as DecodeError
    from se_flax.data.decode import decode as decode
    from se_flax.data.pipeline import eval_batches as eval_batches
    from se_flax.data.pipeline import train_batches as train_batches
    from se_flax.data.prepare import check as check
    from se_flax.data.prepare import list_known as list_known
    from se_flax.data.prepare import prepare as prepare
    from se_flax.data.sampling import SAMPLINGS as SAMPLINGS
    from se_flax.data.sources import open_dataset as open_dataset
    from se_flax.data.transforms import INTERPOLATIONS as INTERPOLATIONS
    from se_flax.data.transforms import EvalTransform as EvalTransform
    from se_flax.data.transforms import TrainTransform as TrainTransform
