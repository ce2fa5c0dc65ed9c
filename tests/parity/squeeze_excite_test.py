"""The SE block against torchvision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torchvision.ops import SqueezeExcitation

from se_flax.nn import SqueezeExcite


@pytest.mark.parametrize('gate', ['sigmoid', 'hard_sigmoid'])
@pytest.mark.parametrize('activation', ['relu', 'silu'])
def test_equals_torchvisions_block_of_another_width(activation, gate):
    layers = {'relu': torch.nn.ReLU, 'silu': torch.nn.SiLU}
    layers |= {'sigmoid': torch.nn.Sigmoid, 'hard_sigmoid': torch.nn.Hardsigmoid}
    theirs = SqueezeExcitation(48, 6, layers[activation], layers[gate]).double()
    block = SqueezeExcite(4, activation=activation, excite=gate, base_channels=24)
    x = np.random.default_rng(1).normal(size=(3, 5, 4, 48))
    params = {
        ours: {'kernel': fc.weight.detach().numpy()[..., 0, 0].T, 'bias': fc.bias.detach().numpy()}
        for ours, fc in (('reduce', theirs.fc1), ('expand', theirs.fc2))
    }
    with jax.enable_x64(True):
        got = block.apply({'params': params}, jnp.asarray(x))
    want = theirs(torch.from_numpy(x).movedim(-1, 1)).movedim(1, -1).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
