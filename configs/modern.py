"""ImageNet-1k with techniques that have become common since the paper; not one of its recipes.

    python train_main.py --config=configs/modern.py:se_resnet50 --workdir=runs/modern

Hardware: one GPU with bfloat16. `--config.accumulate=4` needs a quarter of the memory for maps.
Another `--config.batch_size` scales the rate. No result is published, and ours is not run yet.

Differs from imagenet.py by a cosine schedule with warmup, label smoothing, units that start as
identities, and evaluation of a moving average of the weights.
"""

from se_flax.training.config import load_config


def get_config(model: str = 'se_resnet50'):
    c = load_config(f'imagenet:{model}')
    c.model_fields.zero_init = True  # units start as identities; only ResNets have this field
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
