"""RegNets against torchvision and timm."""

from functools import partial

import jax.numpy as jnp
import pytest
import timm
import torch
from torchvision import models as tv
from torchvision.models import regnet

from se_flax.models import create_model, list_models, model_info, timm_architectures
from se_flax.weights import from_torch

from .compare import check, check_training, enliven

ONE_EACH = {'stage_sizes': (1, 1, 1, 1)}
TORCHVISION = (
    *('regnet_x_400mf', 'regnet_x_800mf', 'regnet_x_1_6gf', 'regnet_x_3_2gf', 'regnet_x_8gf'),
    *('regnet_x_16gf', 'regnet_x_32gf', 'regnet_y_400mf', 'regnet_y_800mf', 'regnet_y_1_6gf'),
    *('regnet_y_3_2gf', 'regnet_y_8gf', 'regnet_y_16gf', 'regnet_y_32gf', 'regnet_y_128gf'),
)
TIMM = {
    **{'regnet_x_200mf': 'regnetx_002', 'timm_regnetx_004': 'regnetx_004'},
    **{'regnet_x_400mf': 'regnetx_004_tv', 'regnet_x_600mf': 'regnetx_006'},
    **{'regnet_x_800mf': 'regnetx_008', 'regnet_x_1_6gf': 'regnetx_016'},
    **{'regnet_x_3_2gf': 'regnetx_032', 'regnet_x_4gf': 'regnetx_040'},
    **{'regnet_x_6_4gf': 'regnetx_064', 'regnet_x_8gf': 'regnetx_080'},
    **{'regnet_x_12gf': 'regnetx_120', 'regnet_x_16gf': 'regnetx_160'},
    **{'regnet_x_32gf': 'regnetx_320', 'regnet_y_200mf': 'regnety_002'},
    **{'regnet_y_400mf': 'regnety_004', 'regnet_y_600mf': 'regnety_006'},
    **{'timm_regnety_008': 'regnety_008', 'regnet_y_800mf': 'regnety_008_tv'},
    **{'regnet_y_1_6gf': 'regnety_016', 'regnet_y_3_2gf': 'regnety_032'},
    **{'regnet_y_4gf': 'regnety_040', 'regnet_y_6_4gf': 'regnety_064'},
    **{'timm_regnety_080': 'regnety_080', 'regnet_y_8gf': 'regnety_080_tv'},
    **{'regnet_y_12gf': 'regnety_120', 'regnet_y_16gf': 'regnety_160'},
    **{'regnet_y_32gf': 'regnety_320', 'regnet_y_128gf': 'regnety_1280'},
}


def shortened(name):
    """torchvision's class with our widths, one unit a stage."""
    model = create_model(name)
    group_widths = [min(model.group_width, width) for width in model.widths]
    ratio = 0.25 if model.se else None
    ones, twos, widths = [1] * 4, [2] * 4, list(model.widths)
    return regnet.RegNet(regnet.BlockParams(ones, widths, group_widths, ones, twos, ratio))


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize('name', TORCHVISION)
def test_stages_are_torchvisions(name, monkeypatch):
    monkeypatch.setattr(regnet, '_regnet', lambda stages, *rest: stages)
    stages = getattr(regnet, name)()
    with torch.device('meta'):  # but not what computes the stages
        net = regnet.RegNet(stages)
    assert model_info(name).params == parameters(net)
    stages = [(len(stage), stage[0].f.c[0].out_channels) for stage in net.trunk_output]
    model = create_model(name)
    assert stages == list(zip(model.stage_sizes, model.widths, strict=True))


@pytest.mark.parametrize('name', TIMM)
def test_stages_are_timms(name):
    net, info = timm.create_model(TIMM[name], device='meta'), model_info(name)
    assert info.params == parameters(net)
    theirs = [(entry['reduction'], entry['num_chs']) for entry in net.feature_info]
    assert [(f.stride, f.channels) for f in info.features] == theirs
    sizes = [len(list(getattr(net, f's{stage}').children())) for stage in (1, 2, 3, 4)]
    assert sizes == list(create_model(name).stage_sizes)


def test_every_regnet_is_timms():
    assert set(TIMM) == {name for name in list_models() if 'regnet' in name}
    names = {theirs: ours for theirs, ours in timm_architectures().items() if 'regnet' in theirs}
    assert names == {theirs: ours for ours, theirs in TIMM.items()}


@pytest.mark.parametrize(
    ('name', 'net', 'sizes'),
    [
        ('timm_regnety_008', partial(timm.create_model, 'regnety_008'), (33,)),
        pytest.param('regnet_y_400mf', tv.regnet_y_400mf, (64, 33), marks=pytest.mark.slow),
        pytest.param('regnet_x_400mf', tv.regnet_x_400mf, (64, 33), marks=pytest.mark.slow),
        pytest.param('regnet_y_8gf', tv.regnet_y_8gf, (64,), marks=pytest.mark.slow),
    ],
)
def test_logits_are_theirs(name, net, sizes):
    check(name, net(), sizes=sizes)


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=() if name.endswith('_400mf') else pytest.mark.slow)
        for name in TIMM
    ],
)
def test_each_stage_is_torchvisions(name):
    """The 32GF and 128GF networks in full would need gigabytes."""
    check(name, shortened(name), sizes=(33,), **ONE_EACH)


def test_training_is_torchvisions():
    """Two units in a stage: one with a projection, one without."""
    fields = {'stage_sizes': (1, 2), 'widths': (24, 56), 'group_width': 8}
    model = create_model('regnet_y_200mf', dtype=jnp.float64, **fields)
    convert = partial(from_torch, 'regnet_y_200mf', **fields)
    ones, twos = [1, 1], [2, 2]
    net = regnet.RegNet(regnet.BlockParams([1, 2], [24, 56], [8, 8], ones, twos, 0.25))
    check_training(model, convert, enliven(net, 32), 32)
