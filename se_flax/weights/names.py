"""Names of the networks' modules in the public code bases, and what is particular to each."""

import csv
import dataclasses
import importlib.resources
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from flax import linen as nn

from se_flax.models import model_info
from se_flax.models.bn_inception import BNInception
from se_flax.models.efficientnet import EfficientNet
from se_flax.models.inception_resnet_v2 import InceptionResNetV2
from se_flax.models.inverted_residual import InvertedResidualNetwork
from se_flax.models.mobilenet import MobileNet
from se_flax.models.mobilenet_v3 import MobileNetV3
from se_flax.models.preact_resnet import PreActResNet
from se_flax.models.regnet import RegNet
from se_flax.models.resnet import BasicBlock, ResNet
from se_flax.models.vgg import VGG
from se_flax.weights.info import BICUBIC, BILINEAR, CAFFE, CIFAR, INCEPTION, Preprocessing

# What a placeholder of names.csv matches; the path may shift a number (`{i+1}`) and has WORDS.
PLACEHOLDERS = {
    **{'s': r'\d', 'i': r'\d{1,3}', 'b': r'\d', 'k': r'\d'},  # stage, unit, branch, layer
    **{'kind': 'conv|bn', 'bn': '/bn/scale|/bn|'},
    'se': 'fc[12]|conv[12]|down|up|conv_reduce|conv_expand',
    **{'m': r'\d[a-e]', 'layer': r'\w+'},  # of the Inception networks
}
WORDS = {
    **{'bn': 'norm', '': 'conv', '/bn': 'norm', '/bn/scale': 'norm'},
    **{'fc1': 'reduce', 'fc2': 'expand', 'conv1': 'reduce', 'conv2': 'expand'},
    **{'down': 'reduce', 'up': 'expand', 'conv_reduce': 'reduce', 'conv_expand': 'expand'},
    **{'double3x3a': 'double3x3_1', 'double3x3b': 'double3x3_2'},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Naming:
    """How a code base, the `lineage`, names the modules of a family of networks, in names.csv.

    With `stage_sizes` a unit's number counts those of all stages.
    """

    lineage: str
    network: type[nn.Module]
    preprocessing: Preprocessing = BILINEAR
    traits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stage_sizes: tuple[int, ...] = ()

    def paths(self, module: str) -> Iterator[str]:
        """Yields the paths that a module (a key without `.weight`) may have, best first."""
        module = re.sub(r'(?<=^features\.)\d+(?=\.block)', self._in_stage, module, flags=re.ASCII)
        for pattern, ours in _rows()[self.lineage, self.network.__name__]:
            if match := pattern.fullmatch(module):
                values: dict[str, str | int] = {}
                for key, text in match.groupdict().items():
                    if text.isdigit():
                        n = int(text)
                        values |= {f'{key}{by:+}': n + by for by in (-1, 1, 2)} | {key: n}
                    else:
                        values[key] = WORDS.get(text, text)
                yield ours.format_map(values)

    def view(self, name: str) -> Preprocessing:
        """Returns the preprocessing of a registered network of this family."""
        size, view = model_info(name).input_size, self.preprocessing
        if size == CIFAR.image_size:
            view = CIFAR
        elif size != view.image_size:  # what EfficientNet's authors do
            view = view._replace(image_size=size, resize=size + 32)
        return view._replace(**VIEWS.get((self.lineage, name), {}))

    def _in_stage(self, number: re.Match[str]) -> str:
        units = [f'{s}.{i}' for s, n in enumerate(self.stage_sizes, start=1) for i in range(n)]
        return dict(enumerate(units, start=1)).get(int(number[0]), number[0])


@cache
def _rows() -> dict[tuple[str, str], list[tuple[re.Pattern[str], str]]]:
    def group(match):
        return f'(?P<{match[1]}>{PLACEHOLDERS[match[1]]})'

    rows = defaultdict(list)
    table = importlib.resources.files('se_flax.weights').joinpath('names.csv').read_text()
    for row in csv.DictReader(table.splitlines()):
        pattern = re.sub(r'\\\{(\w+)\\\}', group, re.escape(row['theirs']))
        for key in itertools.product(row['lineages'].split(), row['network'].split()):
            rows[key].append((re.compile(pattern, re.ASCII), row['ours']))
    return rows


def traits_of(model: nn.Module) -> dict[str, Any]:
    """Returns the choices that differ between code bases and leave no mark on the parameters."""
    if isinstance(model, PreActResNet) and model.bottleneck:
        return {'stride_in': '1x1'}
    if isinstance(model, InvertedResidualNetwork):
        return {'same_padding': model.same_padding}
    if not isinstance(model, ResNet):
        return {}
    traits = {}
    if model.stem != 'cifar':
        traits['pool'] = 'caffe' if model.pool == 'caffe' else 'padded'
    if getattr(model.block, 'func', model.block) is BasicBlock:
        if model.se:
            traits['extra_relu'] = getattr(model.block, 'keywords', {}).get('extra_relu', False)
    elif model.groups == 1:  # with groups, all code bases have the stride in the 3x3
        traits['stride_in'] = '1x1' if model.stride_in == '1x1' else '3x3'
    return traits


_PADDED = {'pool': 'padded', 'extra_relu': False}
_TORCHVISION = _PADDED | {'stride_in': '3x3'}
_SYMMETRIC = {'same_padding': False}
_CAFFE = {'pool': 'caffe', 'extra_relu': True, 'stride_in': '1x1'}
# pytorchcv's Shake-Shake and ShuffleNet are left out, as they compute something else with the same
# parameters: shortcuts take the sum after the ReLU, and branch and shortcut are concatenated in
# the other order.
NAMINGS = (
    Naming('torchvision', ResNet, traits=_TORCHVISION),
    Naming('timm', ResNet, BICUBIC, _TORCHVISION),
    Naming('cadene', ResNet, traits=_CAFFE),
    Naming('pytorchcv', ResNet, traits=_PADDED),
    Naming('pytorchcv', PreActResNet, traits={'stride_in': '3x3'}),
    Naming('pytorchcv', BNInception),
    Naming('timm', InceptionResNetV2, INCEPTION),
    Naming('pytorchcv', InceptionResNetV2, INCEPTION),
    Naming('torchvision', RegNet),
    Naming('timm', RegNet, BICUBIC),
    Naming('torchvision', VGG),
    Naming('timm', VGG),
    Naming('pytorchcv', VGG),
    Naming('pytorchcv', MobileNet),
    # The small network before the large one, which has all of its names.
    Naming('torchvision', MobileNetV3, traits=_SYMMETRIC, stage_sizes=(1, 2, 3, 2, 3)),
    Naming('torchvision', MobileNetV3, traits=_SYMMETRIC, stage_sizes=(1, 2, 3, 4, 2, 3)),
    Naming('timm', MobileNetV3, BICUBIC),
    Naming('torchvision', EfficientNet, BICUBIC, _SYMMETRIC),
    Naming('timm', EfficientNet, BICUBIC),
)
# Where the images of a network are not those of its family, by the lineage and the name here.
_HALF = {'mean': (127.5,) * 3, 'std': (127.5,) * 3}
_LINEAR, _CUBIC = ({'interpolation': of.interpolation} for of in (BILINEAR, BICUBIC))
_RESIZES = {'b1': 256, 'b3': 320, 'b4': 384, 'b5': 456, 'b6': 528, 'b7': 600}
_TF_MOBILE = ('large_075', 'large_100', 'large_minimal_100')
_TF_MOBILE += ('small_075', 'small_100', 'small_minimal_100')
VIEWS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    **{('torchvision', f'efficientnet_{s}'): {'resize': to} for s, to in _RESIZES.items()},
    ('torchvision', 'efficientnet_b2'): {'image_size': 288, 'resize': 288},
    ('torchvision', 'timm_resnext101_64x4d'): {'resize': 232},
    ('torchvision', 'regnet_y_128gf'): {'image_size': 384, 'resize': 384} | _CUBIC,
    ('torchvision', 'efficientnet_v2_s'): {'resize': 384} | _LINEAR,
    ('torchvision', 'efficientnet_v2_m'): {'resize': 480} | _LINEAR,
    ('torchvision', 'efficientnet_v2_l'): {'resize': 480} | _HALF,
    ('timm', 'timm_tf_efficientnetv2_s'): {'resize': 384} | _HALF,
    ('timm', 'timm_tf_efficientnetv2_m'): {'resize': 480} | _HALF,
    ('timm', 'timm_tf_efficientnetv2_l'): {'resize': 480} | _HALF,
    **{('timm', f'timm_tf_mobilenetv3_{size}'): _LINEAR | _HALF for size in _TF_MOBILE},
}
CAFFE_NAMINGS = (Naming('caffe', ResNet, CAFFE, _CAFFE), Naming('caffe', BNInception, CAFFE))
