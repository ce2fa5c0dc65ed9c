"""Optimizers and the loss of recipes against PyTorch's and timm's, on the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from timm.optim import Lamb, RMSpropTF

from se_flax.training.optimizer import make_optimizer

RATES = (0.05, 0.1, 0.02, 0.01)
BETAS = {'betas': (0.8, 0.99)}
SHAPES = {'conv/kernel': (6, 5), 'norm/scale': (5,), 'zero/kernel': (3, 2)}


def sgd(nesterov):
    return lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=nesterov)


@pytest.mark.parametrize(
    ('optimizer', 'options', 'make'),
    [
        ('sgd', {'momentum': 0.9}, sgd(False)),
        ('sgd', {'momentum': 0.9, 'nesterov': True}, sgd(True)),
        ('adamw', BETAS | {'epsilon': 1e-4}, lambda g: torch.optim.AdamW(g, eps=1e-4, **BETAS)),
        (
            'lamb',
            BETAS | {'epsilon': 1e-4, 'clip_norm': 1.0},
            lambda g: Lamb(g, eps=1e-4, max_grad_norm=1.0, **BETAS),
        ),
        (
            'lamb',
            BETAS | {'epsilon': 1e-4},
            lambda g: Lamb(g, eps=1e-4, max_grad_norm=None, **BETAS),
        ),
        *(
            (
                'rmsprop',
                {'momentum': momentum, 'square_decay': 0.95, 'epsilon': 1e-3},
                lambda g, momentum=momentum: RMSpropTF(g, alpha=0.95, eps=1e-3, momentum=momentum),
            )
            for momentum in (0.9, 0.0)
        ),
    ],
)
def test_steps_equal_theirs(optimizer, options, make):
    """With a rate that changes, kernels that decay, one of zeros, and vectors that do not.

    To float32, in which optax has the rate and corrects the bias of Adam.
    """
    rng = np.random.default_rng(0)
    params, *gradients = (
        {name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(5)
    )
    params['zero/kernel'][:] = 0.0
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    kernels = [theirs['conv/kernel'], theirs['zero/kernel']]
    groups = [
        {'params': kernels, 'weight_decay': 0.1},
        {'params': [theirs['norm/scale']], 'weight_decay': 0.0},
    ]
    their_optimizer = make(groups)
    with jax.enable_x64(True):
        schedule = lambda step: jnp.asarray(RATES)[step]  # noqa: E731
        tx = make_optimizer(schedule, optimizer=optimizer, weight_decay=0.1, **options)
        ours = {tuple(name.split('/')): jnp.asarray(value) for name, value in params.items()}
        ours = {first: {last: value} for (first, last), value in ours.items()}
        state = tx.init(ours)
        for rate, gradient in zip(RATES, gradients, strict=True):
            for group in their_optimizer.param_groups:
                group['lr'] = rate
            for name, value in gradient.items():
                theirs[name].grad = torch.tensor(value)
            their_optimizer.step()
            nested = {n.split('/')[0]: {n.split('/')[1]: g} for n, g in gradient.items()}
            updates, state = tx.update(nested, state, ours)
            ours = optax.apply_updates(ours, updates)
            for name, want in theirs.items():
                first, last = name.split('/')
                np.testing.assert_allclose(
                    ours[first][last], want.detach(), rtol=1e-6, atol=1e-9, err_msg=name
                )
