"""How well a network does."""

from se_flax.evaluation.evaluate import evaluate as evaluate
from se_flax.evaluation.evaluate import in_top as in_top
from se_flax.evaluation.evaluate import make_eval_step as make_eval_step
from se_flax.evaluation.evaluate import normalize as normalize
