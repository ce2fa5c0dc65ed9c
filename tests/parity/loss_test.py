"""Binary cross-entropy against timm's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from timm.loss import BinaryCrossEntropy

from se_flax.training.loss import mean_loss


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('threshold', [None, 0.2, 0.5])
@pytest.mark.parametrize('mixed', [False, True])
def test_loss_and_gradient_are_timms(smoothing, threshold, mixed):
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.normal(size=(8, 10)), rng.integers(10, size=8)
    targets, share = np.eye(10)[labels], rng.uniform(size=(8, 1))
    if mixed:
        targets = share * targets + (1 - share) * targets[::-1]
    smoothed = (1 - smoothing) * targets + smoothing / 10
    theirs = torch.tensor(logits, requires_grad=True)
    loss = BinaryCrossEntropy(smoothing, target_threshold=threshold)
    # Of soft targets, timm has smoothed them before.
    want = loss(theirs, torch.tensor(smoothed if mixed else labels))
    want.backward()
    with jax.enable_x64(True):
        got, slope = jax.value_and_grad(
            lambda logits: mean_loss(
                logits,
                optax.smooth_labels(jnp.asarray(targets), smoothing),
                loss='bce',
                bce_threshold=threshold or 0.0,
            )
        )(jnp.asarray(logits))
    np.testing.assert_allclose(got, want.item(), rtol=1e-12)
    np.testing.assert_allclose(slope, theirs.grad, rtol=1e-10, atol=1e-15)
