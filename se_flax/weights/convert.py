"""From a public file, whatever its kind, to a weights file of our own."""

import pathlib
from collections.abc import Mapping
from typing import Any

from se_flax.errors import UserError, check_known
from se_flax.weights.adapt import adapt
from se_flax.weights.caffe import read_caffe
from se_flax.weights.hub import read_hub
from se_flax.weights.info import WeightsInfo
from se_flax.weights.pth import read_pth
from se_flax.weights.safetensors_file import read_safetensors
from se_flax.weights.state_dict import read_state_dict
from se_flax.weights.store import save_weights

OURS = '.safetensors'
HUB = 'hub:'


def convert(
    source: str,
    name: str | None,
    out: str | pathlib.Path,
    *,
    head: str = 'keep',
    in_channels: int | None = None,
    **fields: Any,
) -> WeightsInfo:
    """Reads public weights, writes them to `out`, and returns what belongs to them.

    Args:
        source: a `.pth`, `.pt`, `.safetensors` or `.caffemodel` file, or 'hub:' and an id of the
            Hugging Face hub.
        name: registered name of the network; the hub's ids need none.
        out: a `.safetensors` file, for `load_weights`.
        head, in_channels: as in `load_weights`.
        **fields: of the network's class, as in `from_torch`; not for the hub and Caffe.

    Raises UserError and MissingError as the readers do, before anything is written.
    """
    out = pathlib.Path(out)
    check_known('kind of weights file', out.suffix, (OURS,))
    if not out.parent.is_dir():
        raise UserError(f'no folder {out.parent} for {out.name}')
    info, variables = adapt(*_read(source, name, fields), head, in_channels)
    save_weights(
        *(out, info.model, variables, info.preprocessing),
        lineage=info.lineage,
        fields=info.fields,
    )
    return info


def _read(
    source: str, name: str | None, fields: Mapping[str, Any]
) -> tuple[WeightsInfo, dict[str, Any]]:
    path, hub = pathlib.Path(source), source.startswith(HUB)
    if fields and (hub or path.suffix == '.caffemodel'):
        raise UserError(f'{source} is of a network without {", ".join(fields)} of its own')
    if hub:
        return read_hub(source.removeprefix(HUB))
    if name is None:
        raise UserError('a file does not say which network it is of: --model NAME')
    check_known('kind of weights file', path.suffix, ('.pth', '.pt', OURS, '.caffemodel'))
    if path.suffix == '.caffemodel':
        return read_caffe(name, path)
    state_dict = read_safetensors(path)[1] if path.suffix == OURS else read_pth(path)
    return read_state_dict(name, state_dict, fields)
