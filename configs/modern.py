"""ImageNet-1k with what has become usual since the paper; none of its recipes.

    python train_main.py --config=configs/modern.py:se_resnet50 --workdir=runs/modern

Hardware: one GPU with bfloat16. `--config.accumulate=4` needs a quarter of its memory for the maps;
another `--config.batch_size` scales the rate. Nothing is published, and it is not run yet.

Beside imagenet.py: cosine and warm-up, label smoothing, units that start as identities, and a
moving average of the weights, which is what is evaluated.
"""

import pathlib

import ml_collections

from se_flax.training.config import load_config

TABLE2 = pathlib.Path(__file__).with_name('imagenet.py')


def get_config(model: str = 'se_resnet50') -> ml_collections.ConfigDict:
    c = load_config(f'{TABLE2}:{model}')
    c.model_fields.zero_init = True  # units start as identities; a field of the ResNets
    c.dtype = 'bfloat16'

    c.batch_size = 256
    c.schedule = 'cosine'
    c.learning_rate = 0.1
    c.base_batch_size = 256
    c.warmup = 0.05
    c.nesterov = True
    c.label_smoothing = 0.1
    c.ema = 0.9999

    c.eval_batch_size = 256
    return c
