"""Names of the networks' modules in the public code bases, and what is particular to each."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from flax import linen as nn

from se_flax.models.bn_inception import BNInception
from se_flax.models.inception_resnet_v2 import InceptionResNetV2
from se_flax.models.mobilenet import MobileNet
from se_flax.models.preact_resnet import PreActBottleneck, PreActResNet
from se_flax.models.resnet import BasicBlock, ResNet
from se_flax.models.vgg import VGG
from se_flax.weights.info import BICUBIC, BILINEAR, CAFFE, INCEPTION, Preprocessing

# What a placeholder in a name matches. A path may shift a number, as `{i+1}`, and translates WORDS.
PLACEHOLDERS = {
    **{'s': r'\d', 'i': r'\d{1,3}', 'b': r'\d', 'k': r'\d'},  # stage, unit, branch, layer
    **{'m': r'\d[a-e]', 'kind': 'conv|bn', 'se': 'fc[12]|down|up', 'layer': r'\w+'},
}
WORDS = {
    **{'bn': 'norm', 'fc1': 'reduce', 'fc2': 'expand', 'down': 'reduce', 'up': 'expand'},
    **{'double3x3a': 'double3x3_1', 'double3x3b': 'double3x3_2'},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Naming:
    """How a code base names the modules of one family of networks.

    Attributes:
        lineage: the code base.
        network: class of the family.
        rows: from a module's name in a state dict (a key without `.weight` and the like) to its
            path here, with PLACEHOLDERS. Where two rows match, the one counts whose path the
            network has.
        preprocessing: default for its weights.
        traits: choices of its networks that leave no mark on the parameters, see `traits_of`.
    """

    lineage: str
    network: type[nn.Module]
    rows: Mapping[str, str]
    preprocessing: Preprocessing = BILINEAR
    traits: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def paths(self, module: str) -> Iterator[str]:
        """Yields the paths that a module of this name may have here."""
        for theirs, ours in self.rows.items():
            if match := _pattern(theirs).fullmatch(module):
                values: dict[str, str | int] = {}
                for key, text in match.groupdict().items():
                    if text.isdigit():
                        n = int(text)
                        values |= {key: n, f'{key}+1': n + 1, f'{key}-1': n - 1}
                    else:
                        values[key] = WORDS.get(text, text)
                yield ours.format_map(values)


@cache
def _pattern(row: str) -> re.Pattern[str]:
    def group(match):
        return f'(?P<{match[1]}>{PLACEHOLDERS[match[1]]})'

    return re.compile(re.sub(r'\\\{(\w+)\\\}', group, re.escape(row)), re.ASCII)


def norm_of(conv: str) -> str:
    """Returns the path of the BatchNorm behind a convolution.

    >>> norm_of('stage2_block1/conv_proj')
    'stage2_block1/norm_proj'
    """
    parent, slash, name = conv.rpartition('/')
    return f'{parent}{slash}{name.replace("conv", "norm", 1)}'


def traits_of(model: nn.Module) -> dict[str, Any]:
    """Returns the choices that differ between code bases and leave no mark on the parameters."""
    if isinstance(model, PreActResNet) and model.block is PreActBottleneck:
        return {'stride_in': '1x1'}
    if not isinstance(model, ResNet):
        return {}
    traits = {} if model.stem == 'cifar' else {'pool': model.pool}
    if getattr(model.block, 'func', model.block) is BasicBlock:
        if model.se:
            traits['extra_relu'] = getattr(model.block, 'keywords', {}).get('extra_relu', False)
    elif model.groups == 1:  # with groups, all code bases have the stride in the 3x3
        traits['stride_in'] = model.stride_in
    return traits


def _each(units: Mapping[str, str], parts: Mapping[str, str]) -> dict[str, str]:
    """Returns the rows of each part of each unit."""
    return {f'{u}.{p}': f'{unit}/{part}' for u, unit in units.items() for p, part in parts.items()}


def _with_norms(convs: Mapping[str, str]) -> dict[str, str]:
    """Adds Caffe's two layers of the BatchNorm behind each convolution."""
    norms = {f'{conv}/bn': norm_of(path) for conv, path in convs.items()}
    return {**convs, **norms, **{f'{bn}/scale': path for bn, path in norms.items()}}


# ResNet
_LAYERS = {
    'layer{s}.{i}.{kind}{k}': 'stage{s+1}_block{i+1}/{kind}{k}',
    'layer{s}.{i}.downsample.0': 'stage{s+1}_block{i+1}/conv_proj',
    'layer{s}.{i}.downsample.1': 'stage{s+1}_block{i+1}/norm_proj',
}
TORCHVISION_RESNET = {'{kind}1': '{kind}_stem', **_LAYERS, 'fc': 'head'}
TIMM_RESNET = {
    **TORCHVISION_RESNET,
    'layer{s}.{i}.se.{se}': 'stage{s+1}_block{i+1}/se/{se}',
    **{'conv1.0': 'conv_stem1', 'conv1.3': 'conv_stem2', 'conv1.6': 'conv_stem3'},
    **{'conv1.1': 'norm_stem1', 'conv1.4': 'norm_stem2', 'bn1': 'norm_stem3'},
}
CADENE_RESNET = {
    **{'layer0.{kind}1': '{kind}_stem', 'layer0.{kind}{k}': '{kind}_stem{k}'},
    **_LAYERS,
    'layer{s}.{i}.se_module.{se}': 'stage{s+1}_block{i+1}/se/{se}',
    'last_linear': 'head',
}
_PCV_STEM = {f'features.init_block.{conv}{{kind}}': '{kind}_stem' for conv in ('', 'conv.')}
_PCV_UNITS = {
    'features.stage{s}.unit{i}.body.conv{k}.{kind}': 'stage{s+1}_block{i}/{kind}{k}',
    'features.stage{s}.unit{i}.se.conv1': 'stage{s+1}_block{i}/se/reduce',
    'features.stage{s}.unit{i}.se.conv2': 'stage{s+1}_block{i}/se/expand',
}
PCV_RESNET = {
    **_PCV_STEM,
    'features.init_block.conv{k}.{kind}': '{kind}_stem{k}',
    **_PCV_UNITS,
    'features.stage{s}.unit{i}.identity_conv.{kind}': 'stage{s+1}_block{i}/{kind}_proj',
    **{'output': 'head', 'output.fc': 'head'},
}
PCV_PREACT = {
    'features.init_block': 'conv_stem',
    **_PCV_UNITS,
    'features.stage{s}.unit{i}.identity_conv': 'stage{s+1}_block{i}/conv_proj',
    **{'features.post_activ.bn': 'norm_final', 'output': 'head'},
}
CAFFE_RESNET = {
    'conv1/7x7_s2': 'conv_stem',
    **{'conv1_{k}/3x3_s2': 'conv_stem{k}', 'conv1_{k}/3x3': 'conv_stem{k}'},
    'conv{s}_{i}_1x1_reduce': 'stage{s}_block{i}/conv1',
    'conv{s}_{i}_3x3': 'stage{s}_block{i}/conv2',
    'conv{s}_{i}_1x1_increase': 'stage{s}_block{i}/conv3',
    'conv{s}_{i}_1x1_proj': 'stage{s}_block{i}/conv_proj',  # in SENet-154 these are 3x3
    'conv{s}_{i}_1x1_{se}': 'stage{s}_block{i}/se/{se}',
    'classifier': 'head',
}

# BN-Inception
CAFFE_BN_INCEPTION = {
    **{'conv1/7x7_s2': 'conv1', 'conv2/3x3_reduce': 'conv2_reduce', 'conv2/3x3': 'conv2'},
    'inception_{m}/{layer}': 'inception_{m}/conv_{layer}',
    'inception_{m}_1x1_{se}': 'inception_{m}/se/{se}',
    'classifier': 'head',
}
_PCV_MODULES = (('3a', '3b'), ('3c', '4a', '4b', '4c', '4d'), ('4e', '5a', '5b'))  # of its stages
_PCV_BRANCHES = (
    {'{kind}': '1x1'},
    {'conv1.{kind}': '3x3_reduce', 'conv2.{kind}': '3x3'},
    {f'conv{k}.{{kind}}': f'double3x3_{which}' for k, which in ((1, 'reduce'), (2, 1), (3, 2))},
    {'conv.{kind}': 'pool_proj'},
)
PCV_BN_INCEPTION = {
    'features.init_block.conv1.{kind}': '{kind}1',
    'features.init_block.conv2.conv1.{kind}': '{kind}2_reduce',
    'features.init_block.conv2.conv2.{kind}': '{kind}2',
    **{
        f'features.stage{s}.unit{i}.branches.branch{b}.{part}': f'inception_{m}/{{kind}}_{layer}'
        for s, modules in enumerate(_PCV_MODULES, start=1)
        for i, m in enumerate(modules, start=1)
        # The modules that halve the map have the two inner branches only.
        for b, branch in enumerate(_PCV_BRANCHES[1:3] if m in ('3c', '4e') else _PCV_BRANCHES, 1)
        for part, layer in branch.items()
    },
    'output': 'head',
}

# Inception-ResNet-v2
TIMM_INCEPTION = {
    **{'conv2d_{m}.{kind}': '{kind}_{m}', 'mixed_5b.branch3.1.{kind}': 'mixed_5b/{kind}_pool_1'},
    **_each(
        {
            **{'mixed_{m}': 'mixed_{m}', 'repeat.{i}': 'block35_{i+1}'},
            **{'repeat_1.{i}': 'block17_{i+1}', 'repeat_2.{i}': 'block8_{i+1}'},
            'block8': 'block8_10',
        },
        {
            'branch{b}.{kind}': '{kind}_branch{b}_1',
            'branch{b}.{k}.{kind}': '{kind}_branch{b}_{k+1}',
            'conv2d': 'conv_up',
        },
    ),
    **{'classif': 'head', 'last_linear': 'head'},
}
PCV_INCEPTION = {
    'features.init_block.conv1.{kind}': '{kind}_1a',
    'features.init_block.conv2.{kind}': '{kind}_2a',
    'features.init_block.conv3.{kind}': '{kind}_2b',
    'features.init_block.conv4.{kind}': '{kind}_3b',
    'features.init_block.conv5.{kind}': '{kind}_4a',
    'features.init_block.block.branches.branch4.conv.{kind}': 'mixed_5b/{kind}_pool_1',
    **_each(
        {
            **{'features.init_block.block': 'mixed_5b', 'features.stage1.unit{i}': 'block35_{i}'},
            # The stages 2 and 3 begin with the module that halves the map.
            **{'features.stage2.unit1': 'mixed_6a', 'features.stage2.unit{i}': 'block17_{i-1}'},
            **{'features.stage3.unit1': 'mixed_7a', 'features.stage3.unit{i}': 'block8_{i-1}'},
        },
        {
            'branches.branch{b}.conv.{kind}': '{kind}_branch{b-1}_1',
            'branches.branch{b}.conv_list.conv{k}.{kind}': '{kind}_branch{b-1}_{k}',
            'conv': 'conv_up',
        },
    ),
    **{'features.final_conv.{kind}': '{kind}_7b', 'output.fc': 'head'},
}

# VGG and MobileNet. torchvision numbers VGG's layers; a BatchNorm has the number after its
# convolution's. pytorchcv divides MobileNet's pairs of convolutions into stages.
_VGG_CONVS = ((0, 3), (7, 10), (14, 17, 20), (24, 27, 30), (34, 37, 40))
_VGG = {
    f'features.{number + after}': f'{kind}{stage}_{k}'
    for stage, numbers in enumerate(_VGG_CONVS, start=1)
    for k, number in enumerate(numbers, start=1)
    for after, kind in enumerate(('conv', 'norm'))
}
TORCHVISION_VGG = {**_VGG, 'classifier.0': 'fc6', 'classifier.3': 'fc7', 'classifier.6': 'head'}
TIMM_VGG = {**_VGG, 'pre_logits.fc1': 'fc6', 'pre_logits.fc2': 'fc7', 'head.fc': 'head'}
PCV_VGG = {
    'features.stage{s}.unit{k}.{kind}': '{kind}{s}_{k}',
    **{'output.fc1.fc': 'fc6', 'output.fc2.fc': 'fc7', 'output.fc3': 'head'},
}
_PCV_PAIRS = ((1,), (2, 3), (4, 5), (6, 7, 8, 9, 10, 11), (12, 13))
PCV_MOBILENET = {
    **_PCV_STEM,
    **{
        f'features.stage{s}.unit{i}.{way}_conv.{{kind}}': f'block{pair}/{{kind}}_{layer}'
        for s, pairs in enumerate(_PCV_PAIRS, start=1)
        for i, pair in enumerate(pairs, start=1)
        for way, layer in (('dw', 'depthwise'), ('pw', 'pointwise'))
    },
    'output': 'head',
}

_PADDED = {'pool': 'padded', 'extra_relu': False}
_TORCHVISION = _PADDED | {'stride_in': '3x3'}
_CAFFE = {'pool': 'caffe', 'extra_relu': True, 'stride_in': '1x1'}
# pytorchcv's Shake-Shake and ShuffleNet are left out, as they compute something else with the same
# parameters: shortcuts take the sum after the ReLU, and branch and shortcut are concatenated in
# the other order.
NAMINGS = (
    Naming('torchvision', ResNet, TORCHVISION_RESNET, traits=_TORCHVISION),
    Naming('timm', ResNet, TIMM_RESNET, BICUBIC, _TORCHVISION),
    Naming('cadene', ResNet, CADENE_RESNET, traits=_CAFFE),
    Naming('pytorchcv', ResNet, PCV_RESNET, traits=_PADDED),
    Naming('pytorchcv', PreActResNet, PCV_PREACT, traits={'stride_in': '3x3'}),
    Naming('pytorchcv', BNInception, PCV_BN_INCEPTION),
    Naming('timm', InceptionResNetV2, TIMM_INCEPTION, INCEPTION),
    Naming('pytorchcv', InceptionResNetV2, PCV_INCEPTION, INCEPTION),
    Naming('torchvision', VGG, TORCHVISION_VGG),
    Naming('timm', VGG, TIMM_VGG),
    Naming('pytorchcv', VGG, PCV_VGG),
    Naming('pytorchcv', MobileNet, PCV_MOBILENET),
)
CAFFE_NAMINGS = (
    Naming('caffe', ResNet, _with_norms(CAFFE_RESNET), CAFFE, _CAFFE),
    Naming('caffe', BNInception, _with_norms(CAFFE_BN_INCEPTION), CAFFE),
)
