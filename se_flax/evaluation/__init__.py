"""How well a network does; what needs the data's packages is in the modules besides `evaluate`."""

from se_flax.evaluation.evaluate import evaluate as evaluate
from se_flax.evaluation.evaluate import in_top as in_top
from se_flax.evaluation.evaluate import make_eval_step as make_eval_step
from se_flax.evaluation.evaluate import normalize as normalize
from se_flax.evaluation.interval import wilson as wilson
