"""Starting a run from the weights of another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from se_flax.errors import Problems, UserError
from se_flax.storage import local_path
from se_flax.training.config import OF_WEIGHTS, make_network
from se_flax.training.state import TrainState

if TYPE_CHECKING:  # it needs the extra `weights`, so functions import it
    from se_flax.weights import WeightsInfo

HEAD = 'head'
# Fields of networks that do not change their evaluation.
TRAINING_ONLY = {'zero_init', 'dropout', 'drop_path', 'bn_momentum', 'bn_frozen', 'backward'}


def fill_from_weights(config: ConfigDict) -> ConfigDict:
    """Replaces each None by the value in `init_from`; an own `image_size` scales `eval_resize`."""
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


def check_weights(config: ConfigDict, problems: Problems) -> None:
    """Checks that network and, unless `adapt_channels`, channels and pixels are `init_from`'s."""
    info = problems.check(['init_from'], _read_info, config)
    if info is None:
        return
    problems.check(['model', 'model_fields'], _check_network, config, info, problems)
    if not problems.wrong.isdisjoint(('adapt_channels', 'in_channels')) or config.adapt_channels:
        return
    if (channels := len(info.preprocessing.mean)) != config.in_channels:
        problems.add(
            ['in_channels'],
            f'{config.init_from} has weights for {channels} channels, but '
            f'in_channels={config.in_channels}; to sum or repeat their first kernel, set '
            f'--config.adapt_channels=True',
        )
        return
    for name in sorted({'mean', 'std'} - problems.wrong):
        theirs = getattr(info.preprocessing, name)
        if not np.allclose(config[name], theirs, rtol=0, atol=1e-3):
            text = f'{name}={tuple(config[name])}, but the weights of {config.init_from} expect '
            problems.add([name], f'{text}--config.{name}={",".join(f"{v:g}" for v in theirs)}')


def _check_network(config: ConfigDict, info: 'WeightsInfo', problems: Problems) -> None:
    if info.model != config.model:
        raise UserError(
            f'{config.init_from} has weights of {info.model}, not of {config.model}; '
            f'use --config.model={info.model}'
        )
    ours, theirs = config.model_fields.to_dict(), _fields(info)
    here, there = (make_network(info.model, **fields) for fields in (ours, theirs))
    for name in sorted((ours | theirs).keys() - TRAINING_ONLY):
        if getattr(here, name) != getattr(there, name):
            a, b = (fields.get(name, "the network's default") for fields in (ours, theirs))
            text = f'model_fields.{name} is {a}, but {b} with the weights of {config.init_from}'
            problems.add([f'model_fields.{name}'], text)


def other_view(config: ConfigDict) -> list[str]:
    """Returns a line for each difference from the images that the weights expect."""
    known = _known(config)
    return [
        f'{name}={config[name]}, but the weights of {config.init_from} expect {known[name]}'
        for name in ('image_size', 'eval_resize', 'interpolation')
        if config[name] != known[name]
    ]


def keeps_head(config: ConfigDict, class_names: Sequence[str]) -> bool:
    """Returns whether a run starts with its weights' head: with `keep_head` or equal names."""
    info = _read_info(config)
    if config.keep_head and info.num_classes != len(class_names):
        raise UserError(
            f'keep_head=True needs as many classes as the weights of {config.init_from} have, '
            f'{info.num_classes:,}; the data have {len(class_names):,}'
        )
    return config.keep_head or info.class_names == tuple(class_names)


def start_message(config: ConfigDict, class_names: Sequence[str]) -> str:
    """Returns a line on where the weights come from and whether their head is kept."""
    info, head = _read_info(config), 'head kept'
    if not keeps_head(config, class_names):
        head = f'new head: {info.num_classes:,} -> {len(class_names):,} classes'
    return f'Weights: {config.init_from} ({info.model}, from {info.lineage}); {head}.'


def _read_info(config: ConfigDict) -> 'WeightsInfo':
    from se_flax.weights import read_info

    return read_info(local_path(config.init_from))


def start_from(config: ConfigDict, state: TrainState, class_names: Sequence[str]) -> TrainState:
    """Returns the state with the weights of `init_from`; the head only if `keeps_head`."""
    from se_flax.weights import load_weights

    channels = config.in_channels if config.adapt_channels else None
    path = local_path(config.init_from)
    _, variables = load_weights(path, in_channels=channels)
    if not keeps_head(config, class_names):
        variables['params'][HEAD] = state.params[HEAD]
    loaded = state.starting_from(variables)
    ours, theirs = (
        {(path, leaf.shape) for path, leaf in flatten_dict(variables, sep='/').items()}
        for variables in (loaded.variables, state.variables)
    )
    if differ := sorted({path for path, _ in ours ^ theirs}):
        raise UserError(
            f'the weights of {config.init_from} do not fit model_fields '
            f'{config.model_fields.to_dict()}: {", ".join(differ[:4])}'
        )
    return jax.tree.map(
        lambda new, old: jax.device_put(jnp.asarray(new, old.dtype), old.sharding), loaded, state
    )


def _fields(info: 'WeightsInfo') -> dict[str, Any]:
    return {name: value for name, value in info.fields.items() if name != 'in_channels'}


def _known(config: ConfigDict) -> dict[str, Any]:
    from se_flax.weights import for_channels

    info = _read_info(config)
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
        'fill': tuple(round(value) for value in view.mean),  # normalizes to 0
    }
