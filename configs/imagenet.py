"""ImageNet-1k by the recipe of the paper's Table 2, for any registered network.

    python train_main.py --config=configs/imagenet.py:se_resnet50 --workdir=runs/se_resnet50

Paper (its re-run, one 224 crop): resnet50 24.80 / 7.48, se_resnet50 23.29 / 6.62 % error.
Ours: not run yet.
"""

import ml_collections

from se_flax.training.config import base_config


def get_config(model: str = 'se_resnet50') -> ml_collections.ConfigDict:
    c = base_config()
    c.model = model
    c.bn_group_size = 32  # one GPU of the paper: 1024 images on 32

    c.data = 'imagenet2012'
    c.image_size = 224
    c.mean = (123.0, 117.0, 104.0)  # RGB, of the released models; no division by a deviation
    c.std = (1.0, 1.0, 1.0)
    c.crop = 'inception'
    c.crop_area = (0.08, 1.0)  # the authors' issue 48: 8 % is no typo
    c.crop_aspect = (3 / 4, 4 / 3)
    c.eval_resize = 256

    c.batch_size = 1024
    c.num_epochs = 100.0
    c.schedule = 'step'
    c.learning_rate = 0.6  # no warm-up is mentioned
    c.drop_epochs = (30, 60, 90)
    c.drop_factor = 0.1
    c.momentum = 0.9
    c.weight_decay = 1e-4  # the authors' issue 37; the paper is silent

    c.eval_batch_size = 1024
    return c
