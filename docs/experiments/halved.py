"""fashion.py's network of 32 layers whose branches are halved: SE that chooses no channels.

    se-flax ablate grid --config docs/experiments/halved.py:resnet32_cifar --out runs/halved \
        --vary model=resnet32_cifar,halved_resnet32_cifar --seeds 6

An SE gate starts near 0.5. `Half` is a gate that stays there, and has no parameters.
"""

import dataclasses

from flax import linen as nn

from se_flax.models import create_model, list_models
from se_flax.models.registry import register
from se_flax.nn import Affine
from se_flax.training.config import load_config


class Half(nn.Module):
    """Halves `[..., C]`, where a network has SqueezeExcite."""

    def __call__(self, x):
        return (x.map() if isinstance(x, Affine) else x) / 2


def get_config(model: str):
    plain = create_model('resnet32_cifar')
    if 'halved_resnet32_cifar' not in list_models():
        names = {field.name for field in dataclasses.fields(plain)} - {'parent', 'name', 'se'}
        fields = {name: getattr(plain, name) for name in names}
        register('halved_resnet32_cifar', module=type(plain), input_size=32, se=Half, **fields)
    return load_config(f'docs/experiments/fashion.py:{model}')
