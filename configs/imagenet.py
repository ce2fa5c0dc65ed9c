"""ImageNet-1k with the recipe of the paper's Table 2, for any network.

    python train_main.py --config=configs/imagenet.py:se_resnet50 --workdir=runs/se_resnet50

Hardware: the paper used 32 Titan X with 32 images each. Use any number of devices that divides the
batch; BatchNorm groups keep the result the same. If memory is too small, `--config.accumulate=4`
takes the same step in four parts. If you change the batch size, `--config.base_batch_size=1024`
scales the learning rate with it.

Paper (its own re-runs; one crop), top-1 / top-5 error in %:

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

Not in the paper: the interpolation, and the weight decay, which the authors give for the ResNets
and BN-Inception in issue 37 (the other networks use that of the ResNets here). The paper's first
version drew classes evenly, the last version no longer mentions it:
`--config.sampling=class_aware`.
"""

from se_flax.training.config import base_config


def get_config(model: str = 'se_resnet50'):
    c = base_config()
    c.model = model
    plain = model.removeprefix('se_')
    c.bn_group_size = 32  # images on one GPU of the paper: 1024 on 32 GPUs

    c.data = 'imagenet2012'
    c.image_size = 299 if plain == 'inception_resnet_v2' else 224
    c.mean = (123.0, 117.0, 104.0)  # RGB, as in the released models, which use no std
    c.std = (1.0, 1.0, 1.0)
    c.crop = 'inception'
    c.crop_area = (0.08, 1.0)  # 8 % is confirmed by the authors' issue 48
    c.crop_aspect = (3 / 4, 4 / 3)
    c.eval_resize = 352 if plain == 'inception_resnet_v2' else 256

    c.batch_size = 1024
    c.num_epochs = 100.0
    c.schedule = 'step'
    c.learning_rate = 0.6  # the paper mentions no warmup
    c.drop_epochs = (30, 60, 90)
    c.drop_factor = 0.1
    c.momentum = 0.9
    c.weight_decay = 2e-4 if plain == 'bn_inception' else 1e-4

    c.eval_batch_size = 1024
    return c
