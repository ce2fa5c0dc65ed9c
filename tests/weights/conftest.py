"""Weights under the names of public code bases, which are spelled out here a second time."""

from types import SimpleNamespace

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from se_flax.models import create_model
from se_flax.models.variables import variable_shapes

LEAVES = (
    ('weight', 'params/{}/kernel'),
    ('weight', 'params/{}/scale'),
    ('bias', 'params/{}/bias'),
    ('running_mean', 'batch_stats/{}/mean'),
    ('running_var', 'batch_stats/{}/var'),
)
SMALL = {'width': 4}  # of resnet8_cifar: 5,000 parameters


def flat_variables(name, num_classes=None, **fields):
    """Random variables of a network by their paths."""
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in variable_shapes(create_model(name, num_classes, **fields)).items():
        values = rng.standard_normal(shape).astype(np.float32) / 8
        flat[path] = 1 + np.abs(values) if path.endswith(('var', 'scale')) else values
    return flat


def to_torch(modules, flat):
    """A state dict of flat variables; `modules` maps PyTorch's names to ours."""
    state = {}
    for theirs, ours in modules.items():
        for leaf, place in LEAVES:
            if (value := flat.get(place.format(ours))) is None:
                continue
            if value.ndim == 4:
                value = np.einsum('hwio->oihw', value)
            if value.ndim == 2:
                # PyTorch's SE layers are convolutions of a 1x1 map.
                value = value.T[:, :, None, None] if '/se/' in ours else value.T
            state[f'{theirs}.{leaf}'] = np.ascontiguousarray(value)
        if '/norm' in f'/{ours}':
            state[f'{theirs}.num_batches_tracked'] = np.array(7)
    return state


def resnet_modules(stage_sizes, convs, *, style, se=False, deep=False):
    """PyTorch's module names of a ResNet and ours, by section 6.1 of the fact sheet."""
    modules = {}
    stem = 'layer0.' if style == 'cadene' else ''
    if not deep:
        modules |= {f'{stem}conv1': 'conv_stem', f'{stem}bn1': 'norm_stem'}
    elif style == 'cadene':
        for k in '123':
            modules |= {f'layer0.conv{k}': f'conv_stem{k}', f'layer0.bn{k}': f'norm_stem{k}'}
    else:
        modules |= {'conv1.0': 'conv_stem1', 'conv1.1': 'norm_stem1', 'conv1.3': 'conv_stem2'}
        modules |= {'conv1.4': 'norm_stem2', 'conv1.6': 'conv_stem3', 'bn1': 'norm_stem3'}
    for s, size in enumerate(stage_sizes):
        for i in range(size):
            theirs, ours = f'layer{s + 1}.{i}', f'stage{s + 2}_block{i + 1}'
            for k in range(1, convs + 1):
                modules |= {f'{theirs}.conv{k}': f'{ours}/conv{k}'}
                modules |= {f'{theirs}.bn{k}': f'{ours}/norm{k}'}
            if se:
                block = 'se_module' if style == 'cadene' else 'se'
                modules |= {f'{theirs}.{block}.fc1': f'{ours}/se/reduce'}
                modules |= {f'{theirs}.{block}.fc2': f'{ours}/se/expand'}
            modules |= {f'{theirs}.downsample.0': f'{ours}/conv_proj'}
            modules |= {f'{theirs}.downsample.1': f'{ours}/norm_proj'}
    return modules | {'last_linear' if style == 'cadene' else 'fc': 'head'}


def cifar_modules(sizes=(1, 1, 1), se=False):
    """pytorchcv's module names of a CIFAR ResNet, and ours."""
    modules = {'features.init_block.conv': 'conv_stem', 'features.init_block.bn': 'norm_stem'}
    for s, size in enumerate(sizes, start=1):
        for i in range(1, size + 1):
            theirs, ours = f'features.stage{s}.unit{i}', f'stage{s + 1}_block{i}'
            for k in (1, 2):
                modules |= {f'{theirs}.body.conv{k}.conv': f'{ours}/conv{k}'}
                modules |= {f'{theirs}.body.conv{k}.bn': f'{ours}/norm{k}'}
            if se:
                modules |= {f'{theirs}.se.conv1': f'{ours}/se/reduce'}
                modules |= {f'{theirs}.se.conv2': f'{ours}/se/expand'}
            modules |= {f'{theirs}.identity_conv.conv': f'{ours}/conv_proj'}
            modules |= {f'{theirs}.identity_conv.bn': f'{ours}/norm_proj'}
    return modules | {'output': 'head'}


def hub_cache(folder, repo_id, **files):
    """Files in the layout that huggingface_hub's cache has; `_` in their names stands for a dot."""
    repo = folder / f'models--{repo_id.replace("/", "--")}'
    snapshot = repo / 'snapshots' / ('0' * 40)
    snapshot.mkdir(parents=True)
    (repo / 'refs').mkdir()
    (repo / 'refs' / 'main').write_text('0' * 40)
    for name, data in files.items():
        (snapshot / name.replace('_', '.')).write_bytes(data)


@pytest.fixture(scope='session')
def weights():
    """The functions above, and flat variables of the small network with their state dict."""
    flat = flat_variables('resnet8_cifar', **SMALL)
    return SimpleNamespace(
        flat_variables=flat_variables,
        to_torch=to_torch,
        hub_cache=hub_cache,
        resnet_modules=resnet_modules,
        cifar_modules=cifar_modules,
        fields=SMALL,
        flat=flat,
        variables=unflatten_dict(flat, sep='/'),
        state=to_torch(cifar_modules(), flat),
    )


@pytest.fixture
def assert_equal():
    """Compares variables with flat ones in every bit."""

    def compare(variables, flat):
        got = flatten_dict(variables, sep='/')
        assert got.keys() == flat.keys()
        for path, value in flat.items():
            assert got[path].dtype == np.float32, path
            assert got[path].tobytes() == value.tobytes(), path

    return compare
