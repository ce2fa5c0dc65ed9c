"""MobileNetV3-large on ImageNet-1k with timm's recipe, based on efficientnet.py.

    python train_main.py --config=configs/mobilenet_v3.py --workdir=runs/mobilenet_v3_large

Hardware: 2 GPUs with 512 images each were used. Use any number of devices that divides the batch;
`--config.base_batch_size=1024` scales the learning rate with another batch.

Published (timm's "Training Examples"; one crop of 224), top-1 / top-5 error in %: 24.23 / 7.46; the
paper (arXiv 1905.02244) has a top-1 error of 24.8.
Ours: not run yet.

Differs from timm's as efficientnet.py does, and has no noise on the learning rate. BatchNorm's
epsilon is torchvision's 1e-3; timm's own network, timm_mobilenetv3_large_100, has 1e-5.
"""

from se_flax.training.config import load_config


def get_config(model: str = 'mobilenet_v3_large'):
    c = load_config(f'efficientnet:{model}')

    c.batch_size = 1024
    c.num_epochs = 600.0
    c.learning_rate = 0.064
    c.warmup = 3 / 600
    c.drop_epochs = tuple(round(2.4 * i, 1) for i in range(1, 250))
    c.drop_factor = 0.973
    return c
