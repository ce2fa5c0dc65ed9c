"""Fine-tuning of public weights on a folder of images, for one GPU; not a recipe of the paper.

    python train_main.py --config=configs/fine_tune.py --config.data=folder:PATH \
        --config.init_from=seresnet50.safetensors --workdir=runs/fine_tune

The weights: se-flax convert hub:timm/seresnet50.a1_in1k --out seresnet50.safetensors
The result depends on the data; nothing is published.
"""

import ml_collections

from se_flax.training.config import base_config


def get_config(model: str = 'timm_seresnet50') -> ml_collections.ConfigDict:
    c = base_config()
    c.model = model
    c.bn_group_size = 0  # statistics of the whole batch: it is small, and often a single device's

    c.image_size = 224
    c.mean = (123.675, 116.28, 103.53)  # timm's; a run is refused where the weights want others
    c.std = (58.395, 57.12, 57.375)
    c.crop = 'inception'
    c.crop_area = (0.25, 1.0)  # milder than from scratch
    c.eval_resize = 256

    c.batch_size = 64
    c.num_epochs = 20.0
    c.schedule = 'cosine'
    c.learning_rate = 0.01
    c.warmup = 0.05
    c.momentum = 0.9
    c.weight_decay = 1e-4
    c.label_smoothing = 0.1

    c.log_every_steps = 10
    c.eval_batch_size = 64
    return c
