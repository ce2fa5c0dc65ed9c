"""The table that `se-flax models` prints, against the networks themselves."""

import importlib.resources

import pytest

from se_flax.models import create_model, list_models, model_info
from se_flax.models.complexity import count


def counted(name):
    return count(create_model(name), model_info(name).input_size)


@pytest.mark.slow
def test_counts_table_is_what_the_networks_have(golden):
    rows = [f'{name},{",".join(map(str, counted(name)))}' for name in list_models()]
    table = '\n'.join(['name,params,macs', *rows]) + '\n'
    golden(importlib.resources.files('se_flax.models') / 'counts.csv', table)


@pytest.mark.parametrize(
    'name',
    [
        *('se_resnet50', 'timm_seresnext50_32x4d', 'se_resnet20_cifar', 'se_wrn16_8', 'se_vgg16'),
        *('se_bn_inception', 'se_mobilenet', 'se_shufflenet', 'se_preact_resnet110'),
    ],
)
def test_the_table_has_the_counts_of(name):
    info = model_info(name)
    assert counted(name) == (info.params, info.macs)
