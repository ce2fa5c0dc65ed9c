"""Squeeze-and-Excitation networks (arXiv 1709.01507) in JAX and Flax.

>>> model = create_model('se_resnet50', num_classes=10)
>>> model_info('se_resnet50').params
28088024

`list_models` has the names. `SqueezeExcite` and `BatchNorm` are layers for your own modules, and
`fold_batch_norm` prepares a trained network for inference. The other modules are imported by name:
`se_flax.nnx` (networks as NNX modules), `se_flax.weights` (load and save weights),
`se_flax.training`, `se_flax.data`, `se_flax.evaluation`, `se_flax.inference`, `se_flax.export` and
`se_flax.analysis`.
"""

from se_flax.models import create_model, fold_batch_norm, list_models, model_info
from se_flax.nn import BatchNorm, SqueezeExcite

__all__ = ['BatchNorm', 'SqueezeExcite', 'create_model', 'fold_batch_norm']
__all__ += ['list_models', 'model_info']
