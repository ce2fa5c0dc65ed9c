"""From a PyTorch state dict of a public code base to variables."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from se_flax.errors import UserError
from se_flax.models import create_model, list_models, model_info
from se_flax.models.network import Network
from se_flax.models.variables import Tensor, misfits, variable_shapes
from se_flax.weights import inception_names, plain_names, resnet_names
from se_flax.weights.adapt import FIRST, adapt, for_channels
from se_flax.weights.checkpoint import find_state_dict
from se_flax.weights.fill import as_float32, fill, to_kernel
from se_flax.weights.info import CIFAR, WeightsInfo, without_lists
from se_flax.weights.naming import Naming, norm_of, traits_of

NAMINGS = (*resnet_names.NAMINGS, *inception_names.NAMINGS, *plain_names.NAMINGS)
LEAVES = {
    'weight': ('params/{}/kernel', 'params/{}/scale'),
    'bias': ('params/{}/bias',),
    'running_mean': ('batch_stats/{}/mean',),
    'running_var': ('batch_stats/{}/var',),
}
# VGG's first hidden layer takes a map [7, 7, 512] here, and [512, 7, 7] in PyTorch.
FLATTENED = {'params/fc6/kernel': (512, 7, 7)}


def from_torch(
    name: str,
    state_dict: Mapping[str, Any],
    num_classes: int | None = None,
    *,
    key: str | None = None,
    head: str = 'keep',
    in_channels: int | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Returns the variables of a registered network from a PyTorch state dict.

    The dict has arrays or PyTorch tensors by the names of timm, Cadene (timm's `legacy_*`),
    torchvision or pytorchcv; the names tell which. Its head may have any number of classes, and
    its images any number of channels. Each parameter is filled exactly once, float32; kernels
    become `[H, W, I, O]`, and the bias of a convolution that has none here is taken off the mean of
    the BatchNorm behind it.

    Args:
        name: one of `list_models()`, of the same lineage: `se_resnet50` for Cadene's weights,
            `timm_seresnet50` for timm's.
        state_dict: names and tensors, or a checkpoint that has them under any key; prefixes of the
            names such as `module.` and `_orig_mod.` are taken off, which is logged.
        num_classes: that the network has; None is as many as the head.
        key: of the state dict where a checkpoint holds several, such as 'model' and 'model_ema';
            with dots where it lies deeper.
        head, in_channels: as in `load_weights`; without a head `num_classes` may be any number.
        **fields: of the network's class, as in `create_model`.

    Raises:
        UserError: for weights of another network, lineage or number of classes, with the names they
            fit, and for anything missing, unexpected, mis-shaped or not finite.
    """
    info, variables = adapt(*read_state_dict(name, state_dict, fields, key), head, in_channels)
    if head == 'keep' and num_classes not in (None, info.num_classes):
        raise UserError(
            f"the weights have {info.num_classes} classes, not {num_classes}; head='drop' leaves "
            f'their head out'
        )
    return variables


def read_state_dict(
    name: str, state_dict: Mapping[str, Any], fields: Mapping[str, Any], key: str | None = None
) -> tuple[WeightsInfo, dict[str, Any]]:
    """Returns what `from_torch` does, and what the weights' lineage says of them."""
    fields = without_lists(fields)
    network = type(create_model(name, **fields))
    arrays = _arrays(state_dict, key)
    naming = _detect(name, network, arrays)
    num_classes = _num_classes(naming, arrays)
    if (channels := _in_channels(naming, arrays)) != 3:
        fields = {**fields, 'in_channels': channels}
    model = create_model(name, num_classes, **fields)
    tensors = _tensors(naming, model, arrays)
    wrong = _other_traits(naming, model) or misfits(variable_shapes(model), tensors)
    if wrong:
        fitting = _fitting(naming, model, arrays)
        hint = f'; they fit {" or ".join(fitting)}' if fitting else ''
        raise UserError(f"{naming.lineage}'s weights do not fit {name}: {wrong}{hint}")
    small = model_info(name).input_size == CIFAR.image_size
    view = for_channels(CIFAR if small else naming.preprocessing, model.in_channels)
    return WeightsInfo(name, num_classes, naming.lineage, view, fields), fill(tensors)


def _arrays(state_dict: Mapping[str, Any], key: str | None) -> dict[str, np.ndarray]:
    if not isinstance(state_dict, Mapping):
        raise UserError(
            f'a state dict maps names to tensors, this is a {type(state_dict).__name__}'
        )
    if odd := [key for key in state_dict if not isinstance(key, str)]:
        raise UserError(f'a state dict maps names to tensors, this has the key {odd[0]!r}')

    def known(modules: Iterable[str]) -> int:
        return max(Counter(i for m in modules for i in _knowing(m)).values(), default=0)

    return {
        name: _array(name, value)
        for name, value in find_state_dict(state_dict, known, key).items()
        if _split(name)[1] != 'num_batches_tracked'  # a counter that nothing here needs
    }


@lru_cache(maxsize=1 << 14)
def _knowing(module: str) -> frozenset[int]:
    """Returns the numbers of the NAMINGS that have such a module."""
    return frozenset(i for i, naming in enumerate(NAMINGS) if any(naming.paths(module)))


def _array(key: str, value: Any) -> np.ndarray:
    if not hasattr(value, 'shape'):
        raise UserError(f'{key} is no tensor but a {type(value).__name__}')
    if not hasattr(value, 'detach'):
        return np.asarray(value)
    try:
        value = value.detach().cpu()
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f'{key} has more elements than numbers')  # and would be copied
        # NumPy does not know PyTorch's bfloat16.
        return (value.float() if value.is_floating_point() else value).numpy()
    except (TypeError, RuntimeError) as error:  # of sparse, quantised and abstract tensors
        raise UserError(f'{key} is no plain tensor: {error}') from None


def _split(key: str) -> tuple[str, str]:
    module, _, leaf = key.rpartition('.')
    return module, leaf


def _detect(name: str, network: type[Network], arrays: Iterable[str]) -> Naming:
    modules = {_split(key)[0] for key in arrays}

    def known(naming):
        return sum(NAMINGS.index(naming) in _knowing(module) for module in modules)

    best = max(NAMINGS, key=known)
    if known(best) <= len(modules) / 2:
        strange = sorted(module for module in modules if not any(best.paths(module)))
        lineages = sorted({naming.lineage for naming in NAMINGS})
        raise UserError(
            f'of the networks here, none has names such as {", ".join(strange[:3]) or "none"} in '
            f'{", ".join(lineages)}'
        )
    own = [naming for naming in NAMINGS if naming.network is network]
    ours = max(own, key=known, default=None)
    if ours is None or known(ours) < 0.9 * known(best):  # families share names
        raise UserError(
            f"these are {best.lineage}'s names of a {best.network.__name__}, "
            f'and {name} is a {network.__name__}'
        )
    return ours


def _num_classes(naming: Naming, arrays: Mapping[str, np.ndarray]) -> int:
    for key, array in arrays.items():
        module, leaf = _split(key)
        if leaf == 'bias' and 'head' in naming.paths(module) and array.ndim == 1 and array.size:
            return array.size
    raise UserError("the state dict has no head: no names of the last layer's weight and bias")


def _in_channels(naming: Naming, arrays: Mapping[str, np.ndarray]) -> int:
    for key, array in arrays.items():
        module, leaf = _split(key)
        if leaf == 'weight' and array.ndim == 4 and not {*FIRST}.isdisjoint(naming.paths(module)):
            return max(1, array.shape[1])
    return 3


def _tensors(naming: Naming, model: Network, arrays: Mapping[str, np.ndarray]) -> list[Tensor]:
    shapes = variable_shapes(model)
    tensors = []
    for key, array in arrays.items():
        module, leaf = _split(key)
        places = LEAVES.get(leaf, ())
        paths = [place.format(path) for path in naming.paths(module) for place in places]
        path = next((path for path in paths if path in shapes), paths[0] if paths else None)
        tensors.append(Tensor(key, path, array))
    tensors = _without_conv_biases(shapes, tensors)
    return [_arranged(tensor, shapes.get(tensor.path or '', ())) for tensor in tensors]


def _arranged(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    array = tensor.array
    if not (tensor.path or '').endswith('/kernel'):
        return tensor
    chw = FLATTENED.get(tensor.path or '')
    if chw and array.ndim == 2 and array.shape[1:] == shape[:1]:
        array = array.reshape(-1, *chw)
    return tensor._replace(array=to_kernel(array, shape))


def _without_conv_biases(shapes: Mapping[str, Any], tensors: list[Tensor]) -> list[Tensor]:
    by_path = {tensor.path: tensor for tensor in tensors}
    for path, bias in list(by_path.items()):
        if path is None or path in shapes or not path.endswith('/bias'):
            continue
        conv = path.removeprefix('params/').removesuffix('/bias')
        norm = f'batch_stats/{norm_of(conv)}/mean'
        mean = by_path.get(norm)
        if norm in shapes and mean and mean.array.shape == bias.array.shape:
            shifted = as_float32(mean.name, mean.array) - as_float32(bias.name, bias.array)
            by_path[norm] = mean._replace(array=shifted)
            tensors = [by_path.get(t.path, t) if t is mean else t for t in tensors if t is not bias]
    return tensors


def _other_traits(naming: Naming, model: Network) -> str:
    ours = traits_of(model)
    other = [t for t in naming.traits if t in ours and ours[t] != naming.traits[t]]
    if not other:
        return ''
    theirs, ours = (
        ', '.join(f'{trait}={of[trait]!r}' for trait in other) for of in (naming.traits, ours)
    )
    return f'their network has {theirs}, this one {ours}'


def _fitting(naming: Naming, other: Network, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the networks that these weights can only be of."""
    size = sum(array.size for key, array in arrays.items() if 'running' not in _split(key)[1])
    fitting = []
    for name in list_models():
        model = create_model(name, other.num_classes, in_channels=other.in_channels)
        undecided = traits_of(model).keys() - naming.traits.keys()
        if type(model) is not naming.network or undecided or _other_traits(naming, model):
            continue
        # Tracing all of them would take a minute. A head of other classes is less than half.
        info = model_info(name)
        slack = 1.02 if model.num_classes == info.num_classes else 2
        if 1 / slack < size / info.params < slack:
            tensors = _tensors(naming, model, arrays)
            if not misfits(variable_shapes(model), tensors):
                fitting.append(name)
    return fitting
