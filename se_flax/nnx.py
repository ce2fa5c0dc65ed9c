"""Networks as Flax NNX modules, by Flax's bridge from Linen.

Not part of `import se_flax`, as `flax.nnx` takes time to import.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import unfreeze
from flax.nnx.bridge.variables import linen_vars_to_nnx_attrs, nnx_attrs_to_linen_vars

from se_flax import models
from se_flax.errors import UserError
from se_flax.models.variables import check_variables


class Network(nnx.bridge.ToNNX):
    """A network with its variables, `nnx.Param` and `nnx.BatchStat`, by the names of Linen's
    submodules: `model.head['kernel']`.
    """

    def __init__(self, module: models.Network, variables: Mapping[str, Any], rngs: nnx.Rngs):
        super().__init__(module, rngs)
        for name, value in linen_vars_to_nnx_attrs(variables).items():
            setattr(self, name, nnx.data(value))

    def __call__(  # type: ignore[override]  # the bridge takes any arguments
        self, images: jax.Array, *, train: bool = False, method: str = '__call__'
    ) -> Any:
        """Returns what Linen's network does for `[B, H, W, in_channels]` float images.

        With `train`, a Python bool, updates the running statistics and draws from the rngs.
        Otherwise nothing changes.
        """
        if not train:
            return super().__call__(images, rngs=nnx.Rngs(), mutable=False, method=method)
        # The bridge replaces the Variables that it updates, which `nnx.jit(graph_updates=False)`
        # would not see. So it updates a copy, from which they are updated in place.
        copy = nnx.clone(self)
        logits = super(Network, copy).__call__(
            images, train=True, mutable=['batch_stats'], method=method
        )
        nnx.update(self, nnx.state(copy, (nnx.BatchStat, nnx.RngState)))
        return logits

    def features(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns the last map of each stride, see `se_flax.models.Network.features`."""
        return self(images, train=train, method='features')


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    rngs: nnx.Rngs,
    variables: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Network:
    """Returns the NNX module of a registered name.

    Args:
        name, num_classes, **fields: as for `se_flax.create_model`.
        rngs: draws the initial parameters, and in training dropout and Shake-Shake's mixtures.
            `nnx.Rngs(0)` seeds all, `nnx.Rngs(params=0, dropout=1, shake=2)` each separately.
        variables: Linen's `params` and `batch_stats` to start from, such as `load_weights` returns.

    Raises UserError as `se_flax.create_model` does, and for variables of another network.

    >>> model = create_model('se_resnet8_cifar', num_classes=100, rngs=nnx.Rngs(0))
    >>> model.head['kernel'].shape, model(jnp.ones((2, 32, 32, 3))).shape
    ((64, 100), (2, 100))
    """
    module = models.create_model(name, num_classes, **fields)
    if not isinstance(rngs, nnx.Rngs):
        raise UserError(f'rngs must be an nnx.Rngs, such as nnx.Rngs(0), not {type(rngs).__name__}')
    if variables is None:
        size = models.model_info(name).input_size
        images = jnp.zeros((1, size, size, module.in_channels), module.dtype)
        # Under jit, XLA omits the network's maps and computes only the parameters.
        return Network(module, jax.jit(module.init)(rngs.params(), images), rngs)
    check_variables(module, variables, name)
    return Network(module, jax.tree.map(jnp.asarray, unfreeze(dict(variables))), rngs)


def linen_variables(model: Network) -> dict[str, Any]:
    """Returns the variables as Linen has them, for `apply`, `save_weights`, `fold_batch_norm`."""
    return nnx_attrs_to_linen_vars(dict(nnx.state(model, (nnx.Param, nnx.BatchStat))))
