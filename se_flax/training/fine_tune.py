"""Starting a run from the weights of another."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from se_flax.errors import Problems, UserError
from se_flax.training.config import OF_WEIGHTS, make_network
from se_flax.training.state import TrainState

if TYPE_CHECKING:
    from se_flax.weights import WeightsInfo

HEAD = 'head'
# Fields of networks whose evaluation is the same with any value of them.
TRAINING_ONLY = {'zero_init', 'dropout', 'bn_momentum', 'bn_frozen', 'backward'}


def fill_from_weights(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config with what the weights of `init_from` know in place of each None.

    Another `image_size` takes `eval_resize` with it, in proportion. Raises UserError, and
    MissingError, for a file that cannot be read.
    """
    unknown = [name for name in OF_WEIGHTS if config[name] is None]
    if not config.init_from or not unknown:
        return config
    known = _known(config)
    if 'model' in unknown and config.model_fields:
        known['model_fields'] |= config.model_fields.to_dict()
        unknown.append('model_fields')
    if config.image_size is not None:
        share = known['eval_resize'] / known['image_size']
        known['eval_resize'] = round(config.image_size * share)
    filled = config.copy_and_resolve_references().unlock()
    filled.update({name: known[name] for name in unknown})
    return filled


def check_weights(config: ml_collections.ConfigDict, problems: Problems) -> None:
    """Checks that a run of this config can start from `config.init_from`.

    Network, channels and pixel statistics must be those of the file, or with
    `config.adapt_channels` the network alone; the number of classes need not be.
    """
    info = problems.check(['init_from'], read_weights_info, config)
    if info is None:
        return
    problems.check(['model', 'model_fields'], _check_network, config, info, problems)
    if not config.adapt_channels:
        problems.check(['in_channels'], _check_channels, config, info)
        for name in ('mean', 'std'):
            if 'in_channels' not in problems.wrong:
                problems.check([name], _check_pixels, config, info, name)


def _check_network(
    config: ml_collections.ConfigDict, info: 'WeightsInfo', problems: Problems
) -> None:
    if info.model != config.model:
        raise UserError(
            f'{config.init_from} has weights of {info.model}, not of {config.model}; '
            f'take --config.model={info.model}'
        )
    ours, theirs = config.model_fields.to_dict(), _fields(info)
    here, there = (make_network(info.model, **fields) for fields in (ours, theirs))
    for name in sorted((ours | theirs).keys() - TRAINING_ONLY):
        if getattr(here, name) != getattr(there, name):
            a, b = (fields.get(name, "the network's default") for fields in (ours, theirs))
            text = f'model_fields.{name} is {a}, and {b} with the weights of {config.init_from}'
            problems.add([f'model_fields.{name}'], UserError(text))


def _check_channels(config: ml_collections.ConfigDict, info: 'WeightsInfo') -> None:
    if (channels := len(info.preprocessing.mean)) != config.in_channels:
        raise UserError(
            f'{config.init_from} has weights for {channels} channels, and '
            f'in_channels={config.in_channels}; to sum or repeat their first kernel: '
            f'--config.adapt_channels=True'
        )


def _check_pixels(config: ml_collections.ConfigDict, info: 'WeightsInfo', name: str) -> None:
    ours, theirs = config[name], getattr(info.preprocessing, name)
    if not np.allclose(ours, theirs, rtol=0, atol=1e-3):
        values = ','.join(f'{v:g}' for v in theirs)
        raise UserError(
            f'{name}={tuple(ours)}, but the weights of {config.init_from} expect '
            f'--config.{name}={values}'
        )


def other_view(config: ml_collections.ConfigDict) -> list[str]:
    """Says what differs from the images that the weights of `init_from` expect, a line each."""
    known = _known(config)
    return [
        f'{name}={config[name]}, but the weights of {config.init_from} expect {known[name]}'
        for name in ('image_size', 'eval_resize', 'interpolation')
        if config[name] != known[name]
    ]


def keeps_head(config: ml_collections.ConfigDict, class_names: Sequence[str]) -> bool:
    """Tells whether a run starts with the head of its weights.

    It does where the classes have the same names, in the same order, and where `keep_head` says so;
    raises UserError where that cannot be.
    """
    info = read_weights_info(config)
    if config.keep_head and info.num_classes != len(class_names):
        raise UserError(
            f'keep_head=True needs as many classes as the weights of {config.init_from} have, '
            f'{info.num_classes:,}; the data have {len(class_names):,}'
        )
    return config.keep_head or info.class_names == tuple(class_names)


def told_of_start(config: ml_collections.ConfigDict, class_names: Sequence[str]) -> str:
    """Says in a line where the weights of a run come from, and what became of their head."""
    info = read_weights_info(config)
    head = 'head kept'
    if not keeps_head(config, class_names):
        head = f'new head: {info.num_classes:,} -> {len(class_names):,} classes'
    return f'Weights: {config.init_from} ({info.model}, from {info.lineage}); {head}.'


def read_weights_info(config: ml_collections.ConfigDict) -> 'WeightsInfo':
    """Reads what is known of the weights of `init_from`; raises as `read_info` does."""
    from se_flax.weights import read_info  # the extra `weights`, for those who have some

    return read_info(_path(config))


def start_from(
    config: ml_collections.ConfigDict, state: TrainState, class_names: Sequence[str]
) -> TrainState:
    """Returns the state of step 0 with the parameters and statistics of `config.init_from`.

    The head stays as it was drawn unless `keeps_head`. Raises UserError where anything else does
    not fit.
    """
    from se_flax.weights import load_weights

    channels = config.in_channels if config.adapt_channels else None
    _, variables = load_weights(_path(config), in_channels=channels)
    params, drawn = variables['params'], state.params
    if not keeps_head(config, class_names):
        params[HEAD] = drawn[HEAD]
    loaded = state.starting_from({'params': params, 'batch_stats': variables['batch_stats']})
    if differ := _differing(loaded.variables, state.variables):
        raise UserError(
            f'the weights of {config.init_from} do not fit model_fields '
            f'{config.model_fields.to_dict()}: {", ".join(differ[:4])}'
        )
    return jax.tree.map(
        lambda new, old: jax.device_put(jnp.asarray(new, old.dtype), old.sharding), loaded, state
    )


def _path(config: ml_collections.ConfigDict) -> pathlib.Path:
    return pathlib.Path(config.init_from).expanduser()


def _fields(info: 'WeightsInfo') -> dict[str, Any]:
    return {name: value for name, value in info.fields.items() if name != 'in_channels'}


def _known(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns what OF_WEIGHTS are by the weights of a config, for its channels if adapted."""
    from se_flax.weights import for_channels

    info = read_weights_info(config)
    view = info.preprocessing
    if config.adapt_channels and config.in_channels is not None:
        view = for_channels(view, config.in_channels)
    return {
        'model': info.model,
        'model_fields': _fields(info),
        'in_channels': len(view.mean),
        'image_size': view.image_size,
        'eval_resize': view.resize,
        'interpolation': view.interpolation,
        'mean': view.mean,
        'std': view.std,
        'fill': tuple(round(value) for value in view.mean),  # 0 once it is normalised
    }


def _differing(tree, other) -> list[str]:
    """Returns the paths at which two trees of arrays differ in structure or shape."""

    def shapes(tree):
        flat = jax.tree_util.tree_leaves_with_path(tree)
        return {(jax.tree_util.keystr(k, simple=True, separator='/'), v.shape) for k, v in flat}

    return sorted({path for path, _ in shapes(tree) ^ shapes(other)})
