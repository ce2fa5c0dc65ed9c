"""Names of the residual networks' modules in the public code bases."""

from se_flax.models.preact_resnet import PreActResNet
from se_flax.models.resnet import ResNet
from se_flax.weights.info import BICUBIC
from se_flax.weights.naming import CONV_NORM, PCV_STEM, Naming

_SE = (None, 'reduce', 'expand')


def _block(stage, i):
    return f'stage{stage + 1}_block{i}'


_RESNET = (
    (r'(conv|bn)1', lambda kind: f'{kind}_stem'),
    (r'layer(\d)\.(\d{1,3})\.(conv|bn)(\d)', lambda s, i, kind, k: f'{_block(s, i + 1)}/{kind}{k}'),
    (
        r'layer(\d)\.(\d{1,3})\.downsample\.([01])',
        lambda s, i, k: f'{_block(s, i + 1)}/{CONV_NORM[k]}_proj',
    ),
)
TORCHVISION_RESNET = (*_RESNET, ('fc', 'head'))
TIMM_RESNET = (
    *TORCHVISION_RESNET,
    (r'layer(\d)\.(\d{1,3})\.se\.fc([12])', lambda s, i, k: f'{_block(s, i + 1)}/se/{_SE[k]}'),
    (r'conv1\.([01346])', lambda n: f'{CONV_NORM[n % 3]}_stem{n // 3 + 1}'),
    ('bn1', 'norm_stem3'),
)
CADENE_RESNET = (
    *_RESNET[1:],
    (r'layer0\.(conv|bn)1', lambda kind: f'{kind}_stem'),
    (r'layer0\.(conv|bn)([123])', lambda kind, k: f'{kind}_stem{k}'),
    (
        r'layer(\d)\.(\d{1,3})\.se_module\.fc([12])',
        lambda s, i, k: f'{_block(s, i + 1)}/se/{_SE[k]}',
    ),
    ('last_linear', 'head'),
)
_PCV_SE = (
    r'features\.stage(\d)\.unit(\d{1,3})\.se\.conv([12])',
    lambda s, i, k: f'{_block(s, i)}/se/{_SE[k]}',
)
_PCV_BODY = (
    r'features\.stage(\d)\.unit(\d{1,3})\.body\.conv(\d)\.(conv|bn)',
    lambda s, i, k, kind: f'{_block(s, i)}/{kind}{k}',
)
PCV_RESNET = (
    PCV_STEM,
    (r'features\.init_block\.conv([123])\.(conv|bn)', lambda k, kind: f'{kind}_stem{k}'),
    _PCV_BODY,
    _PCV_SE,
    (
        r'features\.stage(\d)\.unit(\d{1,3})\.identity_conv\.(conv|bn)',
        lambda s, i, kind: f'{_block(s, i)}/{kind}_proj',
    ),
    (r'output(?:\.fc)?', 'head'),
)
PCV_PREACT = (
    (r'features\.init_block', 'conv_stem'),
    _PCV_BODY,
    _PCV_SE,
    (
        r'features\.stage(\d)\.unit(\d{1,3})\.identity_conv',
        lambda s, i: f'{_block(s, i)}/conv_proj',
    ),
    (r'features\.post_activ\.bn', 'norm_final'),
    ('output', 'head'),
)

# pytorchcv's Shake-Shake is left out: its shortcuts take the sum behind the ReLU, not before it.
_PADDED = {'pool': 'padded', 'extra_relu': False}
_TORCHVISION = _PADDED | {'stride_in': '3x3'}
_CAFFE = {'pool': 'caffe', 'extra_relu': True, 'stride_in': '1x1'}
NAMINGS = (
    Naming('torchvision', ResNet, TORCHVISION_RESNET, traits=_TORCHVISION),
    Naming('timm', ResNet, TIMM_RESNET, BICUBIC, _TORCHVISION),
    Naming('cadene', ResNet, CADENE_RESNET, traits=_CAFFE),
    Naming('pytorchcv', ResNet, PCV_RESNET, traits=_PADDED),
    Naming('pytorchcv', PreActResNet, PCV_PREACT, traits={'stride_in': '3x3'}),
)
