"""SENet-154 on ImageNet-1k, as the paper's appendix describes it; differs from imagenet.py.

    python train_main.py --config=configs/senet154.py --workdir=runs/senet154

and, as after the challenge, trained on crops of 320 pixels:

    python train_main.py --config=configs/senet154.py:320 --workdir=runs/senet154_320

Hardware: the paper's 8 servers had 64 GPUs, 32 images each; here any number of devices that divides
the batch. `--config.accumulate=4` needs a quarter of their memory for the maps.

Paper (one crop), top-1 / top-5 error in %: 18.68 / 4.47 at 224 pixels; that network at 320 pixels
17.28 / 3.79 (Table 8); trained at 320 pixels 16.88 / 3.58 (Table 9).
Ours: not run yet.

Published: batch, initial rate, dropout of 0.2 (the network has it), label smoothing, and that
BatchNorm's parameters are frozen "for the last few epochs". Not published: how many (5 is ours),
that its statistics are frozen with them (ours), the amount of smoothing (0.1 is that of the paper
it cites), the length and the drops of the rate (Table 2's here), the weight decay beyond the
authors' issue 37, anything of the training at 320 but its result, and how images are resized for it
(shorter edge 320: others got the paper's numbers from the released weights so).
"""

import pathlib

import ml_collections

from se_flax.errors import check_known
from se_flax.training.config import load_config

TABLE2 = pathlib.Path(__file__).with_name('imagenet.py')


def get_config(image_size: str = '224') -> ml_collections.ConfigDict:
    check_known('image size', image_size, ('224', '320'))
    c = load_config(f'{TABLE2}:senet154')
    c.image_size = int(image_size)
    c.eval_resize = {'224': 256, '320': 320}[image_size]

    c.batch_size = 2048
    c.learning_rate = 1.0
    c.label_smoothing = 0.1
    c.freeze_bn_epochs = 5.0
    return c
