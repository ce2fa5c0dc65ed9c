"""A trained network, of a run or a weights file, and what can be done with it."""

from se_flax.inference.networks import Evaluation as Evaluation
from se_flax.inference.networks import Trained as Trained
from se_flax.inference.networks import evaluate_networks as evaluate_networks
from se_flax.inference.networks import evaluate_run as evaluate_run
from se_flax.inference.networks import evaluate_weights as evaluate_weights
from se_flax.inference.networks import fold as fold
from se_flax.inference.networks import open_eval_set as open_eval_set
from se_flax.inference.networks import open_run as open_run
from se_flax.inference.networks import open_weights as open_weights
from se_flax.inference.networks import predict as predict
from se_flax.inference.networks import save_run_weights as save_run_weights
