"""From public weights, of any kind, to variables or to a weights file of our own."""

import pathlib
from collections.abc import Mapping
from typing import Any

from se_flax.errors import UserError, check_known
from se_flax.storage import check_writable
from se_flax.weights.caffe import read_caffe
from se_flax.weights.files import kind_of, read_index, read_safetensors, read_shards, read_tensors
from se_flax.weights.fill import adapt
from se_flax.weights.hub import read_hub
from se_flax.weights.info import WeightsInfo
from se_flax.weights.state_dict import read_state_dict
from se_flax.weights.store import KEY, read_weights, write_weights


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

    Each parameter is filled exactly once, float32; kernels become `[H, W, I, O]`, and the bias of a
    convolution that has none here is subtracted from the mean of the BatchNorm behind it.

    Args:
        name: one of `list_models()`, of the same lineage: `se_resnet50` for Cadene's weights,
            `timm_seresnet50` for timm's.
        state_dict: tensors or arrays by the names of timm, Cadene (timm's `legacy_*`), torchvision
            or pytorchcv; or a checkpoint that has them under any key. Prefixes of the names, such
            as `module.` and `_orig_mod.`, are removed, which is logged.
        num_classes: checked against the head, unless it is dropped.
        key: of the state dict if there are several, such as 'model' or 'trainer.model_ema'.
        head, in_channels: as in `load_weights`.
        **fields: of the network's class, as in `create_model`.

    Raises UserError for weights of another network, lineage or number of classes, and names those
    they fit; and for anything missing, unexpected, mis-shaped or not finite.
    """
    info, variables = adapt(*read_state_dict(name, state_dict, fields, key), head, in_channels)
    if head == 'keep' and num_classes not in (None, info.num_classes):
        raise UserError(
            f"the weights have {info.num_classes} classes, not {num_classes}; head='drop' leaves "
            'their head out'
        )
    return variables


def from_caffe(
    name: str, path: str | pathlib.Path, *, head: str = 'keep', in_channels: int | None = None
) -> dict[str, Any]:
    """Returns the variables of a network that the authors released, from its `.caffemodel`.

    The network then takes RGB images, of 0 to 255 less the mean (123, 117, 104), and has ImageNet's
    1000 classes in the usual order, by WordNet's numbers. `head` and `in_channels` are as in
    `load_weights`.

    Raises UserError for another network, a damaged file, and anything missing, unexpected,
    mis-shaped or not finite; MissingError if there is no file.
    """
    return adapt(*read_caffe(name, path), head, in_channels)[1]


def from_hub(
    repo_id: str,
    cache_dir: str | pathlib.Path | None = None,
    *,
    head: str = 'keep',
    in_channels: int | None = None,
) -> tuple[str, dict[str, Any]]:
    """Returns the registered name and the variables of timm's weights on the Hugging Face hub.

    Args:
        repo_id: such as 'timm/legacy_senet154.in1k', where `legacy_senet154` is the architecture.
        cache_dir: None is huggingface_hub's own. What is in it needs no network.
        head, in_channels: as in `load_weights`.

    Raises UserError for an id that is not on the hub or not a network here, and MissingError for
    weights that are not in the cache and cannot be fetched.
    """
    info, variables = adapt(*read_hub(repo_id, cache_dir), head, in_channels)
    return info.model, variables


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
    """Reads public weights, writes them to `out`, and returns what they are.

    Args:
        source: a file of PyTorch, safetensors (or the JSON index of its shards) or Caffe, known by
            its content; a weights file of our own; or 'hub:' and an id of the Hugging Face hub.
        name: registered name of the network; not needed for the hub and our own files.
        out: a `.safetensors` file, for `load_weights`; not one that is read.
        key, head, in_channels: as in `from_torch`.
        **fields: as in `from_torch`; not for the hub, Caffe and our own files.

    Raises UserError and MissingError as the readers do, before anything is written.
    """
    out = pathlib.Path(out)
    check_known('kind of weights file', out.suffix, ('.safetensors',))
    check_writable(out)
    info, variables = adapt(*_read(source, name, out, key, fields), head, in_channels)
    write_weights(out, info, variables)
    return info


def _read(
    source: str, name: str | None, out: pathlib.Path, key: str | None, fields: Mapping[str, Any]
) -> tuple[WeightsInfo, dict[str, Any]]:
    path = pathlib.Path(source)
    kind = 'hub' if source.startswith('hub:') else kind_of(path)
    shards = read_index(path) if kind == 'index' else {}
    for file in () if kind == 'hub' else (path, *shards):
        if out.exists() and out.samefile(file):
            raise UserError(f'{out} would overwrite {file}, which is read; write to another file')
    if kind == 'safetensors' and KEY in read_safetensors(path, with_tensors=False)[0]:
        kind = 'ours'
    if kind in ('hub', 'ours', 'caffemodel'):
        if fields:
            raise UserError(f'{source} holds a registered network; it takes no {", ".join(fields)}')
        if key is not None:
            raise UserError(f'{source} holds one network; it takes no key')
    if kind == 'hub':
        return read_hub(source.removeprefix('hub:'))
    if kind == 'ours':
        info, variables = read_weights(path)
        if name not in (None, info.model):
            raise UserError(f'{path} holds {info.model}, not {name}')
        return info, variables
    if name is None:
        raise UserError(f'{path} does not name its network: --model NAME')
    if kind == 'caffemodel':
        return read_caffe(name, path)
    tensors = read_shards(path, shards) if shards else read_tensors(path, kind)
    return read_state_dict(name, tensors, fields, key)
