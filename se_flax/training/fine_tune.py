"""Starting a run from the weights of another."""

import jax
import jax.numpy as jnp
import ml_collections

from se_flax.errors import UserError
from se_flax.training.state import TrainState

HEAD = 'head'


def check_weights(config: ml_collections.ConfigDict) -> None:
    """Raises UserError unless a run of this config can start from `config.init_from`.

    Network, channels and pixel statistics must be those of the file, or with
    `config.adapt_channels` the network alone; the number of classes need not be.
    """
    from se_flax.weights import read_info  # the extra `weights`, for those who have some

    info = read_info(config.init_from)
    if info.model != config.model:
        raise UserError(
            f'{config.init_from} has weights of {info.model}, not of {config.model}; '
            f'take --config.model={info.model}'
        )
    if config.adapt_channels:
        return
    if (channels := len(info.preprocessing.mean)) != config.in_channels:
        raise UserError(
            f'{config.init_from} has weights for {channels} channels, and '
            f'in_channels={config.in_channels}; to sum or repeat their first kernel: '
            f'--config.adapt_channels=True'
        )
    for name, of_weights in (('mean', info.preprocessing.mean), ('std', info.preprocessing.std)):
        if any(abs(a - b) > 1e-3 for a, b in zip(config[name], of_weights, strict=True)):
            values = ','.join(f'{v:g}' for v in of_weights)
            raise UserError(
                f'{name}={tuple(config[name])}, but the weights of {config.init_from} expect '
                f'--config.{name}={values}'
            )


def start_from(config: ml_collections.ConfigDict, state: TrainState) -> TrainState:
    """Returns the state of step 0 with the parameters and statistics of `config.init_from`.

    The head stays as it was drawn where the classes are others, or the file has none. Raises
    UserError where anything else does not fit.
    """
    from se_flax.weights import load_weights

    channels = config.in_channels if config.adapt_channels else None
    _, variables = load_weights(config.init_from, in_channels=channels)
    params, drawn = variables['params'], state.params
    if HEAD not in params or params[HEAD]['bias'].shape != drawn[HEAD]['bias'].shape:
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


def _differing(tree, other) -> list[str]:
    """Returns the paths at which two trees of arrays differ in structure or shape."""

    def shapes(tree):
        flat = jax.tree_util.tree_leaves_with_path(tree)
        return {(jax.tree_util.keystr(k, simple=True, separator='/'), v.shape) for k, v in flat}

    return sorted({path for path, _ in shapes(tree) ^ shapes(other)})
