"""EfficientNet against torchvision and timm: B0 itself, of the others a block a stage."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from torchvision.ops import SqueezeExcitation

from se_flax.models import create_model
from se_flax.weights import from_torch
from se_flax.weights.state_dict import detect, place

from .compare import check_logits, enliven, without_se

nn = torch.nn
QUICK = (
    *('efficientnet_b0_no_se', 'efficientnet_b7', 'efficientnet_v2_l', 'timm_efficientnetv2_s'),
    *('timm_tf_efficientnet_b3', 'timm_tf_efficientnetv2_m'),
)
NAMES = (
    *QUICK,
    *('efficientnet_b0', 'efficientnet_b1', 'efficientnet_b2', 'efficientnet_b3'),
    *('efficientnet_b4', 'efficientnet_b5', 'efficientnet_b6'),
    *('efficientnet_v2_s', 'efficientnet_v2_m'),
    *('efficientnet_b1_no_se', 'efficientnet_b2_no_se', 'efficientnet_b3_no_se'),
    *('efficientnet_b4_no_se', 'efficientnet_b5_no_se', 'efficientnet_b6_no_se'),
    *('efficientnet_b7_no_se', 'efficientnet_v2_s_no_se', 'efficientnet_v2_m_no_se'),
    *('efficientnet_v2_l_no_se', 'timm_efficientnet_b5'),
    *('timm_efficientnetv2_m', 'timm_efficientnetv2_l'),
    *('timm_tf_efficientnet_b0', 'timm_tf_efficientnet_b1', 'timm_tf_efficientnet_b2'),
    *('timm_tf_efficientnet_b4', 'timm_tf_efficientnet_b5', 'timm_tf_efficientnet_b6'),
    *('timm_tf_efficientnet_b7', 'timm_tf_efficientnetv2_s', 'timm_tf_efficientnetv2_l'),
)
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def theirs(name):
    """Their network, without memory."""
    plain = name.removesuffix('_no_se')
    with torch.device('meta'):
        if name.startswith('timm_'):
            return timm.create_model(name.removeprefix('timm_'))
        net = getattr(torchvision.models, plain)()
    return net if plain == name else without_se(net, SqueezeExcitation)


def with_one_block_a_stage(net):
    stages = net.blocks if hasattr(net, 'blocks') else net.features
    for i, stage in enumerate(stages):
        if type(stage) is nn.Sequential:  # not the stem, which has a class of its own
            stages[i] = stage[:1]
    return net


@pytest.mark.parametrize('name', CASES)
def test_logits_of_a_block_a_stage(name):
    net = with_one_block_a_stage(theirs(name)).to_empty(device='cpu')
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    fields = {'stage_sizes': (1,) * len(create_model(name).stage_sizes)}
    variables = from_torch(name, enliven(net, 64).state_dict(), **fields)
    for size in (64, 75) if '_tf_' in name else (64,):  # even and odd maps are padded differently
        check_logits(create_model(name, **fields), variables, net, size)


def test_logits_of_the_whole_network():
    net = enliven(torchvision.models.efficientnet_b0(), 64)
    variables = from_torch('efficientnet_b0', net.state_dict())
    check_logits(create_model('efficientnet_b0'), variables, net, 64)


@pytest.mark.parametrize('name', CASES)
def test_each_tensor_of_the_whole_network_has_its_place(name):
    state = {
        key: np.broadcast_to(np.float32(0), value.shape)
        for key, value in theirs(name).state_dict().items()
        if not key.endswith('num_batches_tracked')
    }
    model = create_model(name)
    assert place(detect(name, type(model), state), model, state)[1] == ''
