"""Names of the modules of VGG and MobileNet in the public code bases."""

from se_flax.models.mobilenet import MobileNet
from se_flax.models.vgg import VGG
from se_flax.weights.naming import CONV_NORM, PCV_STEM, Naming

# Numbers of torchvision's convolutions, one row a stage; each BatchNorm has the next number.
_VGG_NUMBERS = ((0, 3), (7, 10), (14, 17, 20), (24, 27, 30), (34, 37, 40))
_VGG_LAYERS = {
    number + i: f'{CONV_NORM[i]}{stage}_{k}'
    for stage, numbers in enumerate(_VGG_NUMBERS, start=1)
    for k, number in enumerate(numbers, start=1)
    for i in (0, 1)
}
_VGG = ((r'features\.(\d{1,3})', lambda n: _VGG_LAYERS.get(n, '')),)
TORCHVISION_VGG = (
    *_VGG,
    (r'classifier\.0', 'fc6'),
    (r'classifier\.3', 'fc7'),
    (r'classifier\.6', 'head'),
)
TIMM_VGG = (*_VGG, (r'pre_logits\.fc([12])', lambda k: f'fc{k + 5}'), (r'head\.fc', 'head'))
PCV_VGG = (
    (r'features\.stage(\d)\.unit(\d)\.(conv|bn)', lambda s, i, kind: f'{kind}{s}_{i}'),
    (r'output\.fc([12])\.fc', lambda k: f'fc{k + 5}'),
    (r'output\.fc3', 'head'),
)

_PAIRS_BEFORE = (0, 0, 1, 3, 5, 11)  # before each of pytorchcv's stages, which begin with 1
_MOBILENET = (
    PCV_STEM,
    (
        r'features\.stage([1-5])\.unit(\d)\.(dw|pw)_conv\.(conv|bn)',
        lambda s, i, way, kind: (
            f'block{_PAIRS_BEFORE[s] + i}/{kind}_{"depth" if way == "dw" else "point"}wise'
        ),
    ),
    ('output', 'head'),
)

# pytorchcv's ShuffleNet is left out: it concatenates the branch and the shortcut the other way.
NAMINGS = (
    Naming('torchvision', VGG, TORCHVISION_VGG),
    Naming('timm', VGG, TIMM_VGG),
    Naming('pytorchcv', VGG, PCV_VGG),
    Naming('pytorchcv', MobileNet, _MOBILENET),
)
