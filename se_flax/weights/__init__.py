"""Weights: from public files to variables, and in a file format of our own (extra `weights`)."""

from se_flax.errors import extra_needed

with extra_needed():
    from se_flax.weights.caffe import from_caffe as from_caffe
    from se_flax.weights.convert import convert as convert
    from se_flax.weights.fill import adapt as adapt
    from se_flax.weights.hub import from_hub as from_hub
    from se_flax.weights.info import Preprocessing as Preprocessing
    from se_flax.weights.info import WeightsInfo as WeightsInfo
    from se_flax.weights.info import for_channels as for_channels
    from se_flax.weights.state_dict import from_torch as from_torch
    from se_flax.weights.store import load_weights as load_weights
    from se_flax.weights.store import read_info as read_info
    from se_flax.weights.store import read_weights as read_weights
    from se_flax.weights.store import save_weights as save_weights
    from se_flax.weights.store import write_weights as write_weights
