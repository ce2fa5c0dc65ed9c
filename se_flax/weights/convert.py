"""From a public file, whatever its kind, to a weights file of our own."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from se_flax.errors import UserError, check_known
from se_flax.storage import check_writable
from se_flax.weights.adapt import adapt
from se_flax.weights.caffe import read_caffe
from se_flax.weights.files import kind_of
from se_flax.weights.hub import read_hub
from se_flax.weights.info import WeightsInfo
from se_flax.weights.pth import read_pth
from se_flax.weights.safetensors_file import read_metadata, read_safetensors
from se_flax.weights.shards import read_index
from se_flax.weights.state_dict import read_state_dict
from se_flax.weights.store import KEY, read_weights, save_weights

OURS = '.safetensors'
HUB = 'hub:'


def convert(
    source: str,
    name: str | None,
    out: str | pathlib.Path,
    *,
    key: str | None = None,
    head: str = 'keep',
    in_channels: int | None = None,
    **fields: Any,
) -> WeightsInfo:
    """Reads public weights, writes them to `out`, and returns what belongs to them.

    Args:
        source: a file of PyTorch, safetensors (or the JSON index of its shards) or Caffe, known by
            its content; a weights file of our own; or 'hub:' and an id of the Hugging Face hub.
        name: registered name of the network; the hub's ids and our own files need none.
        out: a `.safetensors` file, for `load_weights`; none that is read.
        key: of the state dict where a file holds several, as in `from_torch`.
        head, in_channels: as in `load_weights`.
        **fields: of the network's class, as in `from_torch`; not for the hub, Caffe and our own.

    Raises UserError and MissingError as the readers do, before anything is written.
    """
    out = pathlib.Path(out)
    check_known('kind of weights file', out.suffix, (OURS,))
    check_writable(out)
    info, variables = adapt(*_read(source, name, out, key, fields), head, in_channels)
    save_weights(
        *(out, info.model, variables, info.preprocessing),
        lineage=info.lineage,
        fields=info.fields,
        class_names=info.class_names,
    )
    return info


def _read(
    source: str, name: str | None, out: pathlib.Path, key: str | None, fields: Mapping[str, Any]
) -> tuple[WeightsInfo, dict[str, Any]]:
    path, hub = pathlib.Path(source), source.startswith(HUB)
    kind = HUB if hub else kind_of(path)
    shards = read_index(path) if kind == 'index' else {}
    for file in () if hub else (path, *shards):
        if out.exists() and out.samefile(file):
            raise UserError(f'{out} would overwrite {file}, which is read; write to another file')
    ours = kind == 'safetensors' and KEY in read_metadata(path)
    if ours or kind in (HUB, 'caffemodel'):
        if fields:
            raise UserError(f'{source} is of a network without {", ".join(fields)} of its own')
        if key is not None:
            raise UserError(f'{source} holds one network; it takes no key')
    if hub:
        return read_hub(source.removeprefix(HUB))
    if ours:
        info, variables = read_weights(path)
        if name not in (None, info.model):
            raise UserError(f'{path} is of {info.model}, not of {name}')
        return info, variables
    if name is None:
        raise UserError(f'{path} does not say which network its weights are of: --model NAME')
    if kind == 'caffemodel':
        return read_caffe(name, path)
    tensors = _read_shards(path, shards) if shards else _read_tensors(path, kind)
    return read_state_dict(name, tensors, fields, key)


def _read_tensors(path: pathlib.Path, kind: str) -> Mapping[str, Any]:
    return read_safetensors(path)[1] if kind == 'safetensors' else read_pth(path)


def _read_shards(
    index: pathlib.Path, shards: Mapping[pathlib.Path, Collection[str]]
) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for shard, names in shards.items():
        kind = kind_of(shard)
        check_known(f'kind of shard in {shard}', kind, ('safetensors', 'pth'))
        found = _read_tensors(shard, kind)
        if found.keys() != set(names):
            strange = sorted(map(str, found.keys() ^ set(names)))
            raise UserError(f'{shard} holds other tensors than {index} says: {strange[0]}')
        tensors |= found
    return tensors
