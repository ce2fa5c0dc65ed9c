"""How accurate a network is. Only `metrics`, imported here, works without the `train` extra."""

from se_flax.evaluation.metrics import in_top as in_top
from se_flax.evaluation.metrics import normalize as normalize
from se_flax.evaluation.metrics import wilson as wilson
