"""ImageNet-1k by the recipe of the paper's Table 2, for any registered network.

    python train_main.py --config=configs/imagenet.py:se_resnet50 --workdir=runs/se_resnet50

Hardware: the paper's 32 Titan X had 32 images each. Here it is any number of devices that divides
the batch, as the groups of BatchNorm are a part of the recipe. Where their memory is too small,
`--config.accumulate=4` takes the same step in four parts. Another batch size wants
`--config.base_batch_size=1024`, which scales the rate with it.

Paper (its re-runs; one crop), top-1 / top-5 error in %:

    network                plain         with SE
    resnet50               24.80 / 7.48  23.29 / 6.62
    resnet101              23.17 / 6.52  22.38 / 6.07
    resnet152              22.42 / 6.34  21.57 / 5.73
    resnext50_32x4d        22.11 / 5.90  21.10 / 5.49
    resnext101_32x4d       21.18 / 5.57  20.70 / 5.01
    vgg16                  27.02 / 8.81  25.22 / 7.70
    bn_inception           25.38 / 7.89  24.23 / 7.14
    inception_resnet_v2    20.37 / 5.21  19.80 / 4.79

Ours: not run yet.

Not in the paper: the weight decay, which its authors give for the ResNets and BN-Inception (issue
37; the other networks have the ResNets' here), and the interpolation. Its first version drew
classes evenly, the last one no longer says so: `--config.sampling=class_aware`.
"""

import ml_collections

from se_flax.training.config import base_config


def get_config(model: str = 'se_resnet50') -> ml_collections.ConfigDict:
    c = base_config()
    c.model = model
    plain = model.removeprefix('se_')
    c.bn_group_size = 32  # one GPU of the paper: 1024 images on 32

    c.data = 'imagenet2012'
    c.image_size = 299 if plain == 'inception_resnet_v2' else 224
    c.mean = (123.0, 117.0, 104.0)  # RGB, of the released models; no division by a deviation
    c.std = (1.0, 1.0, 1.0)
    c.crop = 'inception'
    c.crop_area = (0.08, 1.0)  # the authors' issue 48: 8 % is no typo
    c.crop_aspect = (3 / 4, 4 / 3)
    c.eval_resize = 352 if plain == 'inception_resnet_v2' else 256

    c.batch_size = 1024
    c.num_epochs = 100.0
    c.schedule = 'step'
    c.learning_rate = 0.6  # no warm-up is mentioned
    c.drop_epochs = (30, 60, 90)
    c.drop_factor = 0.1
    c.momentum = 0.9
    c.weight_decay = 2e-4 if plain == 'bn_inception' else 1e-4

    c.eval_batch_size = 1024
    return c
