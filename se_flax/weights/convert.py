"""From public weights, of any kind, to a weights file of our own."""

import pathlib
from collections.abc import Mapping
from typing import Any

from se_flax.errors import UserError
from se_flax.storage import check_not_input
from se_flax.weights.caffe import read_caffe
from se_flax.weights.files import kind_of, read_index, read_safetensors, read_shards, read_tensors
from se_flax.weights.fill import adapt
from se_flax.weights.hub import read_hub
from se_flax.weights.info import WeightsInfo
from se_flax.weights.state_dict import read_state_dict
from se_flax.weights.store import KEY, check_out, read_weights, write_weights


def convert(
    source: str | pathlib.Path,
    name: str | None,
    out: str | pathlib.Path,
    *,
    key: str | None = None,
    head: str = 'keep',
    in_channels: int | None = None,
    **fields: Any,
) -> WeightsInfo:
    """Reads public weights, writes them to `out`, and returns what they are.

    Args:
        source: a file of PyTorch, safetensors (or the JSON index of its shards) or Caffe, detected
            by its content; a weights file of our own; or 'hub:' and an id on the Hugging Face hub.
        name: registered name of the network; None for the hub and our own files.
        out: a `.safetensors` file, for `load_weights`.
        key, head, in_channels, **fields: as in `from_torch`.
    """
    out = pathlib.Path(out)
    check_out(out)
    info, variables = adapt(*_read(str(source), name, out, key, fields), head, in_channels)
    write_weights(out, info, variables)
    return info


def _read(
    source: str, name: str | None, out: pathlib.Path, key: str | None, fields: Mapping[str, Any]
) -> tuple[WeightsInfo, dict[str, Any]]:
    path = pathlib.Path(source)
    kind = 'hub' if source.startswith('hub:') else kind_of(path)
    shards = read_index(path) if kind == 'index' else {}
    for file in () if kind == 'hub' else (path, *shards):
        check_not_input(out, file)
    if kind == 'safetensors' and KEY in read_safetensors(path, with_tensors=False)[0]:
        kind = 'ours'
    if kind in ('hub', 'ours', 'caffemodel'):
        if fields:
            raise UserError(
                f'{source} determines its network; it does not accept {", ".join(fields)}'
            )
        if key is not None:
            raise UserError(f'{source} contains one network; it does not accept key')
    if kind in ('hub', 'ours'):
        hub = kind == 'hub'
        info, variables = read_hub(source.removeprefix('hub:')) if hub else read_weights(path)
        if name not in (None, info.model):
            raise UserError(f'{source} contains {info.model}, not {name}')
        return info, variables
    if name is None:
        raise UserError(f'{path} does not name its network; add --model NAME')
    if 'num_classes' in fields:
        raise UserError('the weights determine num_classes; leave it out')
    if kind == 'caffemodel':
        return read_caffe(name, path)
    tensors = read_shards(path, shards) if shards else read_tensors(path, kind)
    return read_state_dict(name, tensors, fields, key)
