"""ImageNet-1k as the authors trained the weights they released, based on imagenet.py.

    python train_main.py --config=configs/released.py:se_resnet50 --workdir=runs/released

Hardware: the authors used a server with 8 Titan X, 32 images each. Use any number of devices that
divides the batch, or one device with `--config.accumulate=8`.

Theirs (README of github.com/hujie-frank/SENet; one crop of 224), top-1 / top-5 error in %:
se_bn_inception 23.62 / 7.04, se_resnet50 22.37 / 6.36, se_resnet101 21.75 / 5.72, se_resnet152
21.34 / 5.54, se_resnext50_32x4d 20.97 / 5.54, se_resnext101_32x4d 19.81 / 4.96.
Ours: not run yet.

The schedule is from their issue 62, the ranges of rotation and jitter are from their README. Not
published: how rotation and jitter are drawn (TrainTransform documents our choice), and the weight
decay (here from the authors' issue 37).
"""

from se_flax.training.config import load_config


def get_config(model: str = 'se_resnet50'):
    c = load_config(f'imagenet:{model}')
    c.rotation = 10.0
    c.jitter = 20.0

    c.batch_size = 256
    c.num_epochs = 270.0
    c.learning_rate = 0.1
    c.drop_epochs = (125, 200, 250)

    c.eval_batch_size = 256
    return c
