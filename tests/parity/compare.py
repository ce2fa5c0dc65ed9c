"""PyTorch networks with live random weights, and their comparison with ours."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from se_flax.models import create_model
from se_flax.weights import from_torch

nn = torch.nn
torch.set_num_threads(1)  # pytest-xdist has a worker for each core

FAST_COMPILE = {'xla_backend_optimization_level': 0}
# Gradients by the emitters that users have: the older ones of tests/conftest.py get VGG's wrong.
EMITTERS = 'xla_cpu_use_fusion_emitters'
USERS = {EMITTERS: True} if EMITTERS in os.environ['XLA_FLAGS'] else {}
ORDER = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}  # of the axes here, as numbered in PyTorch
DRAW = np.random.default_rng
DEEP = re.compile('101|152|34$|senet154|(44|56|110)_cifar')


def cases(*cases):
    """The cases of a test, by network; the deepest, of the same units, are marked slow."""
    return [
        pytest.param(*case, marks=pytest.mark.slow if DEEP.search(case[0]) else ())
        for case in cases
    ]


class ConvNorms(nn.Module):
    """A module whose convolutions and BatchNorms have the names of se_flax."""

    def add(self, name, channels, features, kernel=1, stride=1, groups=1):
        conv = nn.Conv2d(channels, features, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.add_module(f'conv{name}', conv)
        self.add_module(f'norm{name}', nn.BatchNorm2d(features))

    def conv_norm(self, name, x):
        return self.get_submodule(f'norm{name}')(self.get_submodule(f'conv{name}')(x))


class SE(nn.Module):
    """`x sigmoid(W2 relu(W1 mean(x) + b1) + b2)`."""

    def __init__(self, channels, bias=True):
        super().__init__()
        self.reduce = nn.Linear(channels, channels // 16, bias)
        self.expand = nn.Linear(channels // 16, channels, bias)

    def forward(self, x):
        gate = torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


def se_or_none(se, channels, bias=True):
    return SE(channels, bias) if se else nn.Identity()


def to_flax(state):
    """Turns a state dict whose modules have the names of se_flax into variables."""
    flat = {}
    for key, value in state.items():
        path, leaf = key.replace('.', '/').rsplit('/', 1)
        array = value.detach().numpy()
        if leaf.startswith('running_'):
            flat[f'batch_stats/{path}/{leaf.removeprefix("running_")}'] = array
        elif leaf == 'bias':
            flat[f'params/{path}/bias'] = array
        elif leaf == 'weight':
            name = 'scale' if array.ndim == 1 else 'kernel'
            flat[f'params/{path}/{name}'] = array.transpose(ORDER[array.ndim])
    return unflatten_dict(flat, sep='/')


def enliven(net, size):
    """Draws each parameter, and sets running statistics near those of maps of this image size.

    So no part of the network is at its initial value, and no signal dies out or explodes, which
    at much larger images it would: padding is then a smaller share of the maps.
    """
    torch.manual_seed(0)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                # Above 0, or SE's one to four hidden units in the CIFAR networks would be dead.
                nn.init.uniform_(module.bias)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(torch.randn(4 if size > 64 else 8, 3, size, size))
        for norm in norms:
            norm.momentum = 0.1
            deviation = norm.running_var.sqrt()
            norm.running_mean += 0.3 * deviation * torch.randn_like(deviation)
            norm.running_var *= torch.empty_like(deviation).uniform_(0.7, 1.5)
    return net


def without_se(net, kind):
    """Takes out the SE blocks, modules of this kind."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, kind):
                setattr(module, name, nn.Identity())
    return net


def images(size, batch=2):
    return DRAW(size).normal(size=(batch, size, size, 3))


def to_torch(images):
    return torch.from_numpy(images).movedim(-1, 1).contiguous()


def widened(variables):
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float64), variables)


def check_logits(model, variables, net, size, jit=True):
    """Asserts that both give the same logits in evaluation, to 1e-6 of the largest.

    In float64: in float32 rounding differs by processor, and the deepest networks make it a
    thousand times larger. What is left is 2e-7, where `from_torch` puts biases into float32 means.
    Without `jit` ours runs operation by operation, which compile once for many alike networks.
    """
    x = images(size)
    with torch.no_grad():
        theirs = net.double().eval()(to_torch(x)).numpy()
    net.float()  # again, without a change: it came from float32
    with jax.enable_x64():
        apply = model.clone(dtype=jnp.float64).apply
        apply = jax.jit(apply, compiler_options=FAST_COMPILE) if jit else apply
        ours = np.asarray(apply(widened(variables), x))
    scale = np.abs(theirs).max()
    assert np.abs(theirs[0] - theirs[1]).max() > 0.01 * scale, 'logits must depend on the image'
    assert np.abs(ours - theirs).max() <= 1e-6 * scale


def check(name, net, fields=None, sizes=(64, 33), **both):
    """Compares logits; `fields` make the network that `from_torch` takes the weights for.

    `both` are fields of that network and of the one compared.
    """
    variables = from_torch(name, enliven(net, max(sizes)).state_dict(), **(fields or {}), **both)
    for size in sizes:
        check_logits(create_model(name, **both), variables, net, size, jit=False)


def check_training(model, convert, net, size, batch=4):
    """Asserts that gradients and new running statistics are the same, to 1e-5 of the largest.

    `model` has dtype float64 and no dropout, `convert` makes variables of a state dict. The loss is
    a random linear function of the logits.
    """
    variables = convert(net.state_dict())
    x = images(size, batch)
    weights = DRAW(0).normal(size=(batch, model.num_classes))

    net.double().train()
    old = {name: buffer.clone() for name, buffer in net.named_buffers()}
    counts = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda module, args, name=name: counts.update({name: args[0][:, 0].numel()})
            )
    (net(to_torch(x)) * torch.from_numpy(weights)).sum().backward()
    theirs = {name: p.grad for name, p in net.named_parameters()}
    theirs |= dict(net.named_buffers())
    for name, count in counts.items():
        # PyTorch's running variance takes in the unbiased one, ours the biased.
        key = f'{name}.running_var'
        kept = 0.9 * old[key]
        theirs[key] = kept + (theirs[key] - kept) * (count - 1) / count

    def loss(params):
        logits, updates = model.apply(
            {**wide, 'params': params}, x, train=True, mutable=['batch_stats'], rngs=rngs
        )
        return (logits * weights).sum(), updates

    with jax.enable_x64():
        wide = widened(variables)
        rngs = {'shake': jax.random.key(0)}
        grads_of = jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST_COMPILE | USERS)
        grads, updates = grads_of(wide['params'])
        ours = flatten_dict({'params': grads, **updates}, sep='/')
        theirs = flatten_dict(convert(theirs), sep='/')
        assert ours.keys() == theirs.keys()
        # A bias before another BatchNorm has no gradient but rounding.
        floor = 1e-6 * max(np.abs(array).max() for array in theirs.values())
        errors = {
            path: np.abs(ours[path] - expected).max() / max(np.abs(expected).max(), floor)
            for path, expected in theirs.items()
        }
        assert not {path: error for path, error in errors.items() if not error <= 1e-5}
