"""The table that `se-flax models` prints, against the networks themselves."""

import importlib.resources

import pytest
from flax import linen as nn

from se_flax import SqueezeExcite
from se_flax.models import create_model, list_models
from se_flax.models.complexity import count
from se_flax.models.registry import table_row


@pytest.mark.slow
def test_counts_table_is_what_the_networks_have(golden):
    rows = [','.join(table_row(name).values()) for name in list_models()]
    table = '\n'.join(['name,params,macs,features', *rows]) + '\n'
    golden(importlib.resources.files('se_flax.models') / 'counts.csv', table)


@pytest.mark.parametrize(
    'name',
    [
        *('se_resnet50', 'se_resnet20_cifar', 'se_vgg16', 'regnet_y_800mf', 'se_bn_inception'),
        *('se_mobilenet', 'se_shufflenet', 'se_preact_resnet110', 'mobilenet_v3_small'),
        'efficientnet_b0',
    ],
)
def test_the_table_has_the_counts_of(name):
    text = importlib.resources.files('se_flax.models').joinpath('counts.csv').read_text()
    assert ','.join(table_row(name).values()) in text.splitlines()


def test_rematerialized_layers_count():
    model = create_model('se_resnet8_cifar')
    assert count(model.clone(se=nn.remat(SqueezeExcite)), 32) == count(model, 32)
