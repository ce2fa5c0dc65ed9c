"""RegNetY and RegNetX on ImageNet-1k with the recipe of their paper (arXiv 2003.13678).

    python train_main.py --config=configs/regnet.py:regnet_y_800mf --workdir=runs/regnet_y_800mf

Hardware: the paper used 8 GPUs. Use any number of devices that divides the batch.

Published (pycls, MODEL_ZOO.md; mean of 5 runs, one crop of 224), top-1 error in %:

    network    200mf  400mf  600mf  800mf  1_6gf  3_2gf  4gf   6_4gf  8gf   12gf  16gf  32gf
    regnet_y   29.7   25.9   24.5   23.7   22.1   21.1   20.6  20.1   20.1  19.7  19.6  19.1
    regnet_x   31.1   27.4   25.9   24.8   23.0   21.7   21.4  20.8   20.7  20.3  20.0  19.5

Three of these networks have other widths under these names, which are torchvision's: those of the
table are timm_regnety_008, timm_regnety_080 and timm_regnetx_004.
Ours: not run yet.

Differs from pycls: no noise along the principal components of colors, weight decay on kernels only,
running statistics of BatchNorm in place of ones measured after each epoch, and a rate that changes
with each step, from 0 and not a tenth; its cosine starts after the warmup. BatchNorm groups are 32
images. The recipe of arXiv 2103.06877 for the same networks is not here, as it needs AutoAugment.
"""

from se_flax.training.config import base_config


def get_config(model: str = 'regnet_y_800mf'):
    c = base_config()
    c.model = model

    c.data = 'imagenet2012'
    c.mean = (123.675, 116.28, 103.53)
    c.std = (58.395, 57.12, 57.375)

    largest = model.endswith(('y_16gf', '32gf', '128gf'))
    large = model.endswith(('3_2gf', '_4gf', '_8gf', 'regnety_080', '12gf', 'x_16gf'))
    c.batch_size = 256 if largest else 512 if large else 1024
    c.num_epochs = 100.0
    c.schedule = 'cosine'
    c.learning_rate = 0.1
    c.base_batch_size = 128
    c.warmup = 0.05
    c.nesterov = True
    c.weight_decay = 5e-5

    c.eval_batch_size = 1024
    return c
