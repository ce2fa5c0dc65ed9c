"""Squeeze-and-Excitation networks (arXiv 1709.01507) in JAX and Flax."""

from se_flax.models import create_model as create_model
from se_flax.models import fold_batch_norm as fold_batch_norm
from se_flax.models import list_models as list_models
from se_flax.models import model_info as model_info
from se_flax.nn import BatchNorm as BatchNorm
from se_flax.nn import SqueezeExcite as SqueezeExcite
