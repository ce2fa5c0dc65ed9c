"""From a PyTorch state dict of a public code base to variables."""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from se_flax.errors import UserError, check_known
from se_flax.models import create_model, list_models, model_info
from se_flax.models.network import Network
from se_flax.models.variables import Tensor, misfits, variable_shapes
from se_flax.weights.fill import FIRST, as_float32, fill, to_kernel
from se_flax.weights.info import CIFAR, WeightsInfo, for_channels, without_lists
from se_flax.weights.names import NAMINGS, Naming, norm_of, traits_of

LEAVES = {
    'weight': ('params/{}/kernel', 'params/{}/scale'),
    'bias': ('params/{}/bias',),
    'running_mean': ('batch_stats/{}/mean',),
    'running_var': ('batch_stats/{}/var',),
}
MAX_DEPTH = 8  # of dicts and prefixes: searching what a hostile file has takes hours
SMALLEST = 4  # known modules of a network; a layer or two may look like those of another one
logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """An array of a state dict by its key there, which names a module and a leaf of it."""

    key: str
    module: str
    leaf: str
    array: np.ndarray


def read_state_dict(
    name: str, state_dict: Mapping[str, Any], fields: Mapping[str, Any], key: str | None = None
) -> tuple[WeightsInfo, dict[str, Any]]:
    """Returns the variables, and what they are by their lineage; raises as `from_torch` does."""
    fields = without_lists(fields)
    network = type(create_model(name, **fields))
    entries = read_entries(state_dict, key)
    naming = detect(name, network, entries)
    heads = _arrays_of(naming, entries, 'bias', {'head'}, ndim=1)
    if not heads:
        raise UserError("the state dict has no head: no names of the last layer's weight and bias")
    kernels = _arrays_of(naming, entries, 'weight', FIRST, ndim=4)
    if kernels and kernels[0].shape[1] != 3:
        fields = {**fields, 'in_channels': kernels[0].shape[1]}
    model = create_model(name, heads[0].size, **fields)
    tensors, wrong = place_all(naming, model, entries)
    if wrong:
        fitting = _fitting(naming, model, entries)
        hint = f'; they fit {" or ".join(fitting)}' if fitting else ''
        raise UserError(f"{naming.lineage}'s weights do not fit {name}: {wrong}{hint}")
    small = model_info(name).input_size == CIFAR.image_size
    view = for_channels(CIFAR if small else naming.preprocessing, model.in_channels)
    return WeightsInfo(name, heads[0].size, naming.lineage, view, fields), fill(tensors)


def read_entries(state_dict: Mapping[str, Any], key: str | None) -> list[Entry]:
    """Returns the arrays of the state dict that `key` chooses in a checkpoint."""
    if not isinstance(state_dict, Mapping):
        raise UserError(f'a state dict maps names to tensors, not a {type(state_dict).__name__}')
    if odd := [key for key in state_dict if not isinstance(key, str)]:
        raise UserError(f'a state dict maps names to tensors, not the key {odd[0]!r}')
    return [
        Entry(name, *_split(name), _array(name, value))
        for name, value in find_state_dict(state_dict, key).items()
        if _split(name)[1] != 'num_batches_tracked'  # a counter that nothing here needs
    ]


def _split(key: str) -> tuple[str, str]:
    module, _, leaf = key.rpartition('.')
    return module, leaf


def _array(key: str, value: Any) -> np.ndarray:
    if not hasattr(value, 'shape'):
        raise UserError(f'{key} is not a tensor but a {type(value).__name__}')
    if not hasattr(value, 'detach'):
        return np.asarray(value)
    try:
        value = value.detach().cpu()
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f'{key} has more elements than numbers')  # and would be copied
        # NumPy does not know PyTorch's bfloat16.
        return (value.float() if value.is_floating_point() else value).numpy()
    except (TypeError, RuntimeError) as error:  # of sparse, quantized and abstract tensors
        raise UserError(f'{key} is not a plain tensor: {error}') from None


def find_state_dict(checkpoint: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
    """Returns the tensors of the state dict in a checkpoint, by their names in it.

    A nested dict and a prefix of names count as the same: `{'model': {'module.fc.bias': ...}}` has
    the state dict `model.module`. A prefix of names that are known with it stays. What was taken
    and what was left out is logged. Without any state dict, everything is returned.

    `key` is the state dict, or what contains it, if there are several; UserError unless it chooses
    one.
    """
    values = _flatten(checkpoint)
    tensors = {name for name, value in values.items() if hasattr(value, 'shape')}
    found = _state_dicts(tensors)
    chosen = _choose({prefix: len(names) for prefix, names in found.items()}, key)
    taken = found.get(chosen, tensors)
    rest = sorted(tensors - taken)
    if chosen or rest:
        more = ', ...' if len(rest) > 3 else ''
        other = f'; left out {len(rest)} others: {", ".join(rest[:3])}{more}' if rest else ''
        logger.warning('took the %d tensors under %r%s', len(taken), chosen, other)
    prefix = chosen and f'{chosen}.'

    def is_wrong(name: str) -> bool:
        """A weight that is not a tensor is a mistake, not something beside the state dict."""
        module = _split(name.removeprefix(prefix))[0]
        return name not in tensors and name.startswith(prefix) and _known({module}) > 0

    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name in taken or is_wrong(name)
    }


def _flatten(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    seen, dicts = {id(checkpoint)}, [('', checkpoint, 0)]
    for prefix, inner, depth in dicts:  # grows on the way
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
    modules: dict[str, dict[str, str]] = defaultdict(dict)  # by tensor, under each prefix
    for name in tensors:
        parts = name.split('.')
        for depth in range(min(len(parts), MAX_DEPTH)):
            modules['.'.join(parts[:depth])][name] = '.'.join(parts[depth:-1])

    def count(prefix: str) -> tuple[int, int]:
        inside = {*modules[prefix].values()}
        return _known(inside), len(inside)

    def is_one(prefix: str) -> bool:
        known, number = count(prefix)
        return known >= SMALLEST and known > number / 2

    # The largest first, and of equal ones the outermost: names that are known stay as they are.
    order = sorted(
        (prefix for prefix in modules if count(prefix)[0] >= SMALLEST),
        key=lambda prefix: (-count(prefix)[0], len(prefix), prefix),
    )
    found: dict[str, set[str]] = {}
    while (one := next(filter(is_one, order), None)) is not None:
        found[one] = {*modules[one]}
        for under in modules.values():
            for name in found[one] & under.keys():
                del under[name]
    return found


def _choose(sizes: Mapping[str, int], key: str | None) -> str:
    if not sizes:
        return ''
    if key is not None and key in sizes:
        return key
    fitting = [prefix for prefix in sizes if key is None or prefix.startswith(f'{key}.')]
    if not fitting:
        check_known('state dict', key, sizes)
    if len(fitting) > 1:
        listed = ', '.join(f'{prefix!r} ({sizes[prefix]} tensors)' for prefix in sorted(fitting))
        raise UserError(
            f'the file holds {len(fitting)} state dicts: {listed}; choose one: --key NAME, in '
            'Python key=NAME'
        )
    return fitting[0]


@lru_cache(maxsize=1 << 14)
def _namings_with(module: str) -> tuple[Naming, ...]:
    return tuple(naming for naming in NAMINGS if any(naming.paths(module)))


def _votes(modules: Iterable[str]) -> Counter[Naming]:
    """Counts the modules that each naming knows."""
    return Counter(naming for module in modules for naming in _namings_with(module))


def _known(modules: Iterable[str]) -> int:
    """Returns how many of the modules one network can have."""
    return max(_votes(modules).values(), default=0)


def detect(name: str, network: type[Network], entries: Iterable[Entry]) -> Naming:
    """Returns the naming of the entries; UserError unless one of this class of network fits."""
    modules = {entry.module for entry in entries}
    votes = _votes(modules)
    best = max(NAMINGS, key=votes.__getitem__)
    if votes[best] <= len(modules) / 2:
        strange = sorted(module for module in modules if best not in _namings_with(module))
        lineages = sorted({naming.lineage for naming in NAMINGS})
        raise UserError(
            f'no network here has names such as {", ".join(strange[:3]) or "none"} in '
            f'{", ".join(lineages)}'
        )
    own = [naming for naming in NAMINGS if naming.network is network]
    ours = max(own, key=votes.__getitem__, default=None)
    if ours is None or votes[ours] < 0.9 * votes[best]:  # families share names
        raise UserError(
            f"these are {best.lineage}'s names of a {best.network.__name__}, "
            f'and {name} is a {network.__name__}'
        )
    return ours


def _arrays_of(
    naming: Naming, entries: Iterable[Entry], leaf: str, places: Collection[str], ndim: int
) -> list[np.ndarray]:
    return [
        entry.array
        for entry in entries
        if entry.leaf == leaf and entry.array.ndim == ndim and entry.array.size
        if any(path in places for path in naming.paths(entry.module))
    ]


def place_all(naming: Naming, model: Network, entries: Iterable[Entry]) -> tuple[list[Tensor], str]:
    """Returns the tensors of a network, and what is wrong with them; '' if they fit."""
    theirs, ours = naming.traits, traits_of(model)
    if other := [t for t in theirs if t in ours and ours[t] != theirs[t]]:
        theirs, ours = (', '.join(f'{t}={of[t]!r}' for t in other) for of in (theirs, ours))
        return [], f'their network has {theirs}, this one {ours}'
    shapes = variable_shapes(model)
    tensors = _without_conv_biases(shapes, [place(naming, shapes, entry) for entry in entries])
    return tensors, misfits(shapes, tensors)


def place(naming: Naming, shapes: Mapping[str, tuple[int, ...]], entry: Entry) -> Tensor:
    """Returns the array with its path here, in the layout of a kernel if it is one."""
    leaves = LEAVES.get(entry.leaf, ())
    paths = [leaf.format(path) for path in naming.paths(entry.module) for leaf in leaves]
    path = next((path for path in paths if path in shapes), paths[0] if paths else None)
    if path is None or not path.endswith('/kernel'):
        return Tensor(entry.key, path, entry.array)
    return Tensor(entry.key, path, to_kernel(path, entry.array, shapes.get(path, ())))


def _without_conv_biases(
    shapes: Mapping[str, tuple[int, ...]], tensors: list[Tensor]
) -> list[Tensor]:
    """Takes biases of convolutions that have none here off the means of the BatchNorms behind."""
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


def _fitting(naming: Naming, other: Network, entries: Iterable[Entry]) -> list[str]:
    """Returns the names of the networks that these weights can only belong to."""
    size = sum(entry.array.size for entry in entries if 'running' not in entry.leaf)
    fitting = []
    for name in list_models():
        model = create_model(name, other.num_classes, in_channels=other.in_channels)
        if type(model) is not naming.network or traits_of(model).keys() - naming.traits.keys():
            continue
        # Tracing all of them would take a minute. A head of other classes is less than half.
        info = model_info(name)
        slack = 1.02 if model.num_classes == info.num_classes else 2
        fits_in = 1 / slack < size / info.params < slack
        if fits_in and not place_all(naming, model, entries)[1]:
            fitting.append(name)
    return fitting
