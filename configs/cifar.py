"""CIFAR-10 and -100 for the networks of the paper's Tables 4 and 5, each with its original recipe.

    python train_main.py --config=configs/cifar.py:se_preact_resnet110 --workdir=runs/cifar

Hardware: one GPU. For the other data set add `--config.data=cifar100`.

Paper, error in %:

    network                CIFAR-10: plain, with SE    CIFAR-100
    preact_resnet110       6.37, 5.21                  26.88, 23.85
    preact_resnet164       5.46, 4.39                  24.33, 21.31
    wrn16_8                4.27, 3.88                  20.43, 19.14
    shake_shake26_2x96d    2.56, 2.12
    shake_even29_2x4x64d                               15.85, 15.41

Ours: not run yet. Others have found smaller gains, and none for a wide ResNet. The plain network's
15.85 was trained without Cutout; with Cutout it has 15.20 (github.com/uoguelph-mlrg/Cutout).

The paper only says that it follows the networks' own recipes. ResNets: arXiv 1603.05027, appendix,
with a tenth of the rate in the first 400 steps. Wide ResNet: github.com/szagoruyko/
wide-residual-networks, except that the original pads by reflection. Shake-Shake:
github.com/xgastaldi/shake-shake, with Cutout of sides 16 and 8. If a source used two GPUs, the
BatchNorm groups are the images of one GPU. The original programs decay all parameters, this one
only kernels.
"""

from se_flax.errors import check_known
from se_flax.training.config import base_config

_PREACT = {
    'bn_group_size': 64,
    'batch_size': 128,
    'num_epochs': 163.84,  # 64,000 steps
    'schedule': 'step',
    'learning_rate': 0.1,
    'warmup': 400 / 64_000,
    'warmup_factor': 0.1,
    'drop_epochs': (81.92, 122.88),  # 32,000 and 48,000 steps
    'weight_decay': 1e-4,
}
RECIPES = {
    'preact_resnet110': _PREACT,
    'preact_resnet164': _PREACT,
    'wrn16_8': {
        'bn_group_size': 128,
        'batch_size': 128,
        'num_epochs': 200.0,
        'schedule': 'step',
        'learning_rate': 0.1,
        'drop_epochs': (60, 120, 160),
        'drop_factor': 0.2,
        'nesterov': True,
        'weight_decay': 5e-4,
    },
    'shake_shake26_2x96d': {
        'cutout': 16,
        'bn_group_size': 64,
        'batch_size': 128,
        'num_epochs': 1800.0,
        'schedule': 'cosine',
        'learning_rate': 0.2,
        'nesterov': True,
        'weight_decay': 1e-4,
    },
    'shake_even29_2x4x64d': {
        'data': 'cifar100',
        'cutout': 8,
        'bn_group_size': 16,
        'batch_size': 32,
        'num_epochs': 1800.0,
        'schedule': 'cosine',
        'learning_rate': 0.025,
        'nesterov': True,
        'weight_decay': 5e-4,
    },
}


def get_config(model: str = 'se_preact_resnet110'):
    check_known('network of this recipe', model, [*RECIPES, *(f'se_{name}' for name in RECIPES)])
    c = base_config()
    c.model = model

    c.data = 'cifar10'
    c.image_size = 32
    c.mean = (125.3, 123.0, 113.9)
    c.std = (63.0, 62.1, 66.7)
    c.crop = 'pad'
    c.pad = 4
    c.fill = (125, 123, 114)  # 0 after normalization
    c.eval_resize = 0
    c.cache = True

    c.momentum = 0.9
    c.update(RECIPES[model.removeprefix('se_')])

    c.eval_batch_size = 200
    return c
