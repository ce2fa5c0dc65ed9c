"""From a PyTorch state dict of a public code base to variables."""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from se_flax.errors import UserError, check_known
from se_flax.models import create_model, list_models, model_info
from se_flax.models.inverted_residual import InvertedResidualNetwork
from se_flax.models.network import Network
from se_flax.models.variables import Tensor, misfits, variable_shapes
from se_flax.storage import without_lists
from se_flax.weights.fill import FIRST, adapt, as_float32, fill, to_kernel
from se_flax.weights.info import WeightsInfo, for_channels
from se_flax.weights.names import NAMINGS, Naming, traits_of

LEAVES = {
    **{'weight': ('params/{}/kernel', 'params/{}/scale'), 'bias': ('params/{}/bias',)},
    **{'running_mean': ('batch_stats/{}/mean',), 'running_var': ('batch_stats/{}/var',)},
}
MAX_DEPTH = 8  # of dicts and prefixes: searching all that a hostile file has takes hours
SMALLEST = 4  # known modules of a network; a layer or two may look like those of another one
logger = logging.getLogger(__name__)


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

    All are float32; kernels become `[H, W, I, O]`, and the bias of a convolution that has none here
    is subtracted from the mean of the BatchNorm after it.

    Args:
        name: a network of the same lineage: `se_resnet50` for Cadene's weights (timm's `legacy_*`),
            `timm_seresnet50` for timm's.
        state_dict: tensors or arrays by the names of timm, Cadene, torchvision or pytorchcv, or a
            checkpoint that contains them. Prefixes such as `module.` are removed, which is logged.
        num_classes: checked against the head, unless it is dropped.
        key: of the state dict if there are several, such as 'model' or 'trainer.model_ema'.
        head, in_channels: as in `load_weights`.
        **fields: of the network's class, as in `create_model`.

    Raises UserError for weights of another network, with the names of the networks that fit.
    """
    info, variables = adapt(*read_state_dict(name, state_dict, fields, key), head, in_channels)
    if head == 'keep' and num_classes not in (None, info.num_classes):
        raise UserError(
            f"the weights have {info.num_classes} classes, not {num_classes}; use head='drop' to "
            'drop their head'
        )
    return variables


def read_state_dict(
    name: str, state_dict: Mapping[str, Any], fields: Mapping[str, Any], key: str | None = None
) -> tuple[WeightsInfo, dict[str, Any]]:
    network = type(create_model(name, **without_lists(fields)))
    if not isinstance(state_dict, Mapping):
        raise UserError(
            f'a state dict must be a mapping of names to tensors, not {type(state_dict).__name__}'
        )
    if odd := [key for key in state_dict if not isinstance(key, str)]:
        raise UserError(f'the keys of a state dict must be strings, not {odd[0]!r}')
    arrays = {
        tensor: _array(tensor, value)
        for tensor, value in find_state_dict(state_dict, key).items()
        if tensor.rpartition('.')[2] != 'num_batches_tracked'  # a counter that nothing here needs
    }
    return fill_network(name, detect(name, network, arrays), arrays, fields)


def fill_network(
    name: str, naming: Naming, arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any]
) -> tuple[WeightsInfo, dict[str, Any]]:
    if _of_timm_alone(naming, name):
        raise UserError(
            f"these are torchvision's weights, but {name} is timm's network, with another epsilon "
            'of BatchNorm or another padding; use a name without timm_'
        )
    num_classes, channels = 0, 3
    for key, array in arrays.items():
        module, _, leaf = key.rpartition('.')
        paths = {*naming.paths(module)}
        if leaf == 'bias' and array.ndim == 1 and 'head' in paths:
            num_classes = array.size
        if leaf == 'weight' and array.ndim == 4 and not paths.isdisjoint(FIRST):
            channels = max(1, array.shape[1])
    if not num_classes:
        raise UserError("the state dict has no head: the last layer's weight and bias are missing")
    fields = without_lists(fields) | ({} if channels == 3 else {'in_channels': channels})
    model = create_model(name, num_classes, **fields)
    tensors, wrong = place(naming, model, arrays)
    if wrong:
        fitting = _fitting(naming, model, arrays)
        hint = f'; they fit {" or ".join(fitting)}' if fitting else ''
        raise UserError(f"{naming.lineage}'s weights do not fit {name}: {wrong}{hint}")
    view = for_channels(naming.view(name), model.in_channels)
    return WeightsInfo(name, num_classes, naming.lineage, view, fields), fill(tensors)


def _array(key: str, value: Any) -> np.ndarray:
    if not hasattr(value, 'shape'):
        raise UserError(f'{key} is not a tensor but a {type(value).__name__}')
    if not hasattr(value, 'detach'):
        return np.asarray(value)
    try:
        value = value.detach().cpu()
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f'{key} has more elements than its storage')  # and would be copied
        # NumPy does not know PyTorch's bfloat16.
        return (value.float() if value.is_floating_point() else value).numpy()
    except (TypeError, RuntimeError) as error:  # of sparse, quantized and abstract tensors
        raise UserError(f'{key} is not a plain tensor: {error}') from None


def find_state_dict(checkpoint: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
    """Returns the tensors of the state dict in a checkpoint, by their names in it.

    Nested dicts and prefixes are the same: `{'model': {'module.fc.bias': ...}}` has the state dict
    `model.module`. `key` is the prefix, or its beginning, of one of several.
    """
    values = _flatten(checkpoint)
    tensors = {name for name, value in values.items() if hasattr(value, 'shape')}
    found = _state_dicts(tensors)
    chosen = _choose(found, key) if found else ''
    taken = found.get(chosen, tensors)
    rest = sorted(tensors - taken)
    if chosen or rest:
        more = ', ...' if len(rest) > 3 else ''
        other = f'; ignoring {len(rest)} others: {", ".join(rest[:3])}{more}' if rest else ''
        logger.warning('using the %d tensors under %r%s', len(taken), chosen, other)
    prefix = chosen and f'{chosen}.'
    # A weight that is not a tensor is a mistake, not something beside the state dict.
    taken |= {
        name
        for name in values.keys() - tensors
        if name.startswith(prefix) and _namings_with(name.removeprefix(prefix).rpartition('.')[0])
    }
    return {name.removeprefix(prefix): values[name] for name in values if name in taken}


def _flatten(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    seen, dicts = {id(checkpoint)}, [('', checkpoint, 0)]
    for prefix, inner, depth in dicts:  # which grows
        for key, value in inner.items():
            if not isinstance(key, str):
                continue  # such as the numbers of an optimizer's parameters
            name = f'{prefix}{key}'
            if isinstance(value, Mapping):
                if id(value) not in seen and depth < MAX_DEPTH:
                    seen.add(id(value))
                    dicts.append((f'{name}.', value, depth + 1))
            elif name in flat:
                raise UserError(f'the checkpoint has {name} twice')
            else:
                flat[name] = value
    return flat


def _state_dicts(tensors: set[str]) -> dict[str, set[str]]:
    """Returns the tensors of each state dict by its prefix; none belongs to two."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)  # of each tensor, under each prefix
    for name in tensors:
        parts = name.split('.')
        for depth in range(min(len(parts), MAX_DEPTH)):
            modules['.'.join(parts[:depth])][name] = '.'.join(parts[depth:-1])

    def known(prefix: str) -> int:
        return max(_votes(modules[prefix].values()).values(), default=0)

    def is_one(prefix: str) -> bool:
        return known(prefix) >= max(SMALLEST, len({*modules[prefix].values()}) // 2 + 1)

    # The largest first, and of equal ones the outermost: names that are known stay as they are.
    order = sorted(modules, key=lambda prefix: (-known(prefix), len(prefix), prefix))
    found: dict[str, set[str]] = {}
    while (one := next(filter(is_one, order), None)) is not None:
        found[one] = {*modules[one]}
        for under in modules.values():
            for name in found[one] & under.keys():
                del under[name]
    return found


def _choose(found: Mapping[str, set[str]], key: str | None) -> str:
    if key is not None and key in found:
        return key
    fitting = sorted(p for p in found if key is None or p.startswith(f'{key}.'))
    if not fitting:
        if [*found] == ['']:
            raise UserError(f'key={key!r} is not needed: the file is a state dict itself')
        check_known('state dict', key, found)
    if len(fitting) > 1:
        listed = ', '.join(f'{prefix!r} ({len(found[prefix])} tensors)' for prefix in fitting)
        raise UserError(
            f'the file contains {len(fitting)} state dicts: {listed}; choose one with --key NAME '
            '(in Python: key=NAME)'
        )
    return fitting[0]


@lru_cache(maxsize=1 << 14)
def _namings_with(module: str) -> tuple[Naming, ...]:
    return tuple(naming for naming in NAMINGS if any(naming.paths(module)))


def _votes(modules: Iterable[str]) -> Counter[Naming]:
    return Counter(naming for module in {*modules} for naming in _namings_with(module))


def detect(name: str, network: type[Network], names: Iterable[str]) -> Naming:
    """Returns whose names these are; UserError unless they are those of such a network."""
    modules = {key.rpartition('.')[0] for key in names}
    votes = _votes(modules)
    best = max(NAMINGS, key=votes.__getitem__)
    if votes[best] <= len(modules) / 2:
        strange = sorted(module for module in modules if best not in _namings_with(module))
        lineages = sorted({naming.lineage for naming in NAMINGS})
        raise UserError(
            f'no supported network of {", ".join(lineages)} has names such as '
            f'{", ".join(strange[:3]) or "none"}'
        )
    ours = max((n for n in NAMINGS if n.network is network), key=votes.__getitem__, default=None)
    if ours is None or votes[ours] < 0.9 * votes[best]:  # families share names
        raise UserError(
            f"these are {best.lineage}'s names for a {best.network.__name__}, "
            f'but {name} is a {network.__name__}'
        )
    return ours


def _of_timm_alone(naming: Naming, name: str) -> bool:
    """Returns whether timm's network computes something else from parameters of torchvision."""
    inverted = issubclass(naming.network, InvertedResidualNetwork)
    return inverted and naming.lineage == 'torchvision' and name.startswith('timm_')


def place(
    naming: Naming, model: Network, arrays: Mapping[str, np.ndarray]
) -> tuple[list[Tensor], str]:
    """Returns the arrays with their paths in a network, and what is wrong; '' if they fit."""
    theirs, ours = naming.traits, traits_of(model)
    if other := [trait for trait in theirs if theirs[trait] != ours.get(trait, theirs[trait])]:
        theirs, ours = (', '.join(f'{t}={of[t]!r}' for t in other) for of in (theirs, ours))
        return [], f'their network has {theirs}, this one has {ours}'
    shapes = variable_shapes(model)
    tensors = []
    for key, array in arrays.items():
        module, _, leaf = key.rpartition('.')
        paths = [of.format(path) for path in naming.paths(module) for of in LEAVES.get(leaf, ())]
        path = next((path for path in paths if path in shapes), paths[0] if paths else None)
        if path and path.endswith('/kernel'):
            array = to_kernel(path, array, shapes.get(path, ()))
        tensors.append(Tensor(key, path, array))
    tensors = _without_conv_biases(shapes, tensors)
    return tensors, misfits(shapes, tensors)


def _without_conv_biases(shapes: Collection[str], tensors: list[Tensor]) -> list[Tensor]:
    """Subtracts biases of convolutions that have none here from the means of the BatchNorms."""
    by_path = {tensor.path: tensor for tensor in tensors}
    new: dict[str, Tensor | None] = {}  # by the names of those that change; None goes
    for path, bias in by_path.items():
        if path is None or path in shapes or not path.endswith('/bias'):
            continue
        _, *parents, conv, _ = path.split('/')
        norm = '/'.join(['batch_stats', *parents, conv.replace('conv', 'norm', 1), 'mean'])
        mean = by_path.get(norm)
        if norm in shapes and mean and mean.array.shape == bias.array.shape:
            shifted = as_float32(mean.name, mean.array) - as_float32(bias.name, bias.array)
            new |= {bias.name: None, mean.name: mean._replace(array=shifted)}
    return [t for tensor in tensors if (t := new.get(tensor.name, tensor))]


def _fitting(naming: Naming, other: Network, arrays: Mapping[str, np.ndarray]) -> list[str]:
    size = sum(array.size for key, array in arrays.items() if 'running' not in key)
    fitting = []
    for name in list_models():
        if _of_timm_alone(naming, name):
            continue
        model = create_model(name, other.num_classes, in_channels=other.in_channels)
        if type(model) is not naming.network or traits_of(model).keys() - naming.traits.keys():
            continue
        # Tracing all of them would take a minute. A head of other classes is less than half.
        info = model_info(name)
        slack = 1.02 if model.num_classes == info.num_classes else 2
        of_this_size = 1 / slack < size / info.params < slack
        if of_this_size and not place(naming, model, arrays)[1]:
            fitting.append(name)
    return fitting
