"""Names of the Inception networks' modules in the public code bases."""

from se_flax.models.bn_inception import BNInception
from se_flax.models.inception_resnet_v2 import InceptionResNetV2
from se_flax.weights.info import INCEPTION
from se_flax.weights.naming import Naming

# Modules of pytorchcv's stages; its first of the stages 2 and 3 halve the map and have no 1x1.
_BN_MODULES = (None, ('3a', '3b'), ('3c', '4a', '4b', '4c', '4d'), ('4e', '5a', '5b'))
_BN_CONVS = (('3x3_reduce', '3x3'), ('double3x3_reduce', 'double3x3_1', 'double3x3_2'))
_BN_MODULE = r'features\.stage([123])\.unit([1-5])\.branches\.'


def _bn_path(s, i, kind, layer):
    modules = _BN_MODULES[s]
    return f'inception_{modules[i - 1]}/{kind}_{layer}' if i <= len(modules) else ''


def _bn_conv(s, i, branch, k, kind):
    layers = _BN_CONVS[branch]
    return _bn_path(s, i, kind, layers[k - 1]) if k <= len(layers) else ''


PCV_BN_INCEPTION = (
    (r'features\.init_block\.conv1\.(conv|bn)', lambda kind: f'{kind}1'),
    (r'features\.init_block\.conv2\.conv1\.(conv|bn)', lambda kind: f'{kind}2_reduce'),
    (r'features\.init_block\.conv2\.conv2\.(conv|bn)', lambda kind: f'{kind}2'),
    (
        r'features\.stage([23])\.unit(1)\.branches\.branch([12])\.conv([123])\.(conv|bn)',
        lambda s, i, b, k, kind: _bn_conv(s, i, b - 1, k, kind),
    ),
    (_BN_MODULE + r'branch1\.(conv|bn)', lambda s, i, kind: _bn_path(s, i, kind, '1x1')),
    (
        _BN_MODULE + r'branch([23])\.conv([123])\.(conv|bn)',
        lambda s, i, b, k, kind: _bn_conv(s, i, b - 2, k, kind),
    ),
    (
        _BN_MODULE + r'branch4\.conv\.(conv|bn)',
        lambda s, i, kind: _bn_path(s, i, kind, 'pool_proj'),
    ),
    ('output', 'head'),
)

_STEM = (None, '1a', '2a', '2b', '3b', '4a')
_BLOCKS = ('block35', 'block17', 'block8')
_PCV_MIXED = (None, None, 'mixed_6a', 'mixed_7a')


def _pcv_unit(s, i):
    # The stages 2 and 3 begin with the module that halves the map.
    return _PCV_MIXED[s] if s > 1 and i == 1 else f'{_BLOCKS[s - 1]}_{i - (s > 1)}'


TIMM_INCEPTION = (
    (r'conv2d_(\d[ab])\.(conv|bn)', lambda i, kind: f'{kind}_{i}'),
    (
        r'(mixed_\d[ab])\.branch(\d)(?:\.(\d))?\.(conv|bn)',
        lambda mixed, b, k, kind: f'{mixed}/{kind}_branch{b}_{k + 1}',
    ),
    (r'mixed_5b\.branch3\.1\.(conv|bn)', lambda kind: f'mixed_5b/{kind}_pool_1'),
    (
        r'repeat(?:_([12]))?\.(\d{1,3})\.branch(\d)(?:\.(\d))?\.(conv|bn)',
        lambda r, i, b, k, kind: f'{_BLOCKS[r]}_{i + 1}/{kind}_branch{b}_{k + 1}',
    ),
    (r'repeat(?:_([12]))?\.(\d{1,3})\.conv2d', lambda r, i: f'{_BLOCKS[r]}_{i + 1}/conv_up'),
    (
        r'block8\.branch(\d)(?:\.(\d))?\.(conv|bn)',
        lambda b, k, kind: f'block8_10/{kind}_branch{b}_{k + 1}',
    ),
    (r'block8\.conv2d', 'block8_10/conv_up'),
    (r'classif|last_linear', 'head'),
)
PCV_INCEPTION = (
    (r'features\.init_block\.conv([1-5])\.(conv|bn)', lambda k, kind: f'{kind}_{_STEM[k]}'),
    (
        r'features\.init_block\.block\.branches\.branch([1-3])\.conv(?:_list\.conv(\d))?\.(conv|bn)',
        lambda b, k, kind: f'mixed_5b/{kind}_branch{b - 1}_{max(k, 1)}',
    ),
    (
        r'features\.init_block\.block\.branches\.branch4\.conv\.(conv|bn)',
        lambda kind: f'mixed_5b/{kind}_pool_1',
    ),
    (
        r'features\.stage([123])\.unit(\d{1,3})\.branches\.branch(\d)\.conv(?:_list\.conv(\d))?\.(conv|bn)',
        lambda s, i, b, k, kind: f'{_pcv_unit(s, i)}/{kind}_branch{b - 1}_{max(k, 1)}',
    ),
    (r'features\.stage([123])\.unit(\d{1,3})\.conv', lambda s, i: f'{_pcv_unit(s, i)}/conv_up'),
    (r'features\.final_conv\.(conv|bn)', lambda kind: f'{kind}_7b'),
    (r'output\.fc', 'head'),
)

NAMINGS = (
    Naming('pytorchcv', BNInception, PCV_BN_INCEPTION),
    Naming('timm', InceptionResNetV2, TIMM_INCEPTION, INCEPTION),
    Naming('pytorchcv', InceptionResNetV2, PCV_INCEPTION, INCEPTION),
)
