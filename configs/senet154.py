"""SENet-154 on ImageNet-1k, as described in the paper's appendix, based on imagenet.py.

    python train_main.py --config=configs/senet154.py --workdir=runs/senet154

Trained on crops of 320 pixels, as after the challenge:

    python train_main.py --config=configs/senet154.py:320 --workdir=runs/senet154_320

Hardware: the paper used 8 servers with 64 GPUs, 32 images each. Use any number of devices that
divides the batch. `--config.accumulate=4` needs a quarter of the memory for maps.

Paper (one crop), top-1 / top-5 error in %: 18.68 / 4.47 at 224 pixels; the same network at 320
pixels 17.28 / 3.79 (Table 8); trained at 320 pixels 16.88 / 3.58 (Table 9).
Ours: not run yet.

Published: batch, initial rate, dropout of 0.2 (part of the network), label smoothing, and that
BatchNorm's parameters are frozen "for the last few epochs". Not published: how many epochs (5 is
our choice), whether the statistics are frozen too (they are here), the amount of smoothing (0.1 is
from the paper that is cited), the length and the drops of the rate (those of Table 2 here), the
weight decay (here from the authors' issue 37), how the network was trained at 320 pixels, and how
images are resized for it (shorter edge 320, with which others reproduced the paper's numbers from
the released weights).
"""

from se_flax.errors import check_known
from se_flax.training.config import load_config


def get_config(image_size: str = '224'):
    check_known('image size', image_size, ('224', '320'))
    c = load_config('imagenet:senet154')
    c.image_size = int(image_size)
    c.eval_resize = {'224': 256, '320': 320}[image_size]

    c.batch_size = 2048
    c.learning_rate = 1.0
    c.label_smoothing = 0.1
    c.freeze_bn_epochs = 5.0
    return c
