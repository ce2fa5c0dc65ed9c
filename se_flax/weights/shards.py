"""Reads the JSON index of weights that lie in several files, as Hugging Face's libraries write."""

import json
import pathlib

from se_flax.errors import MissingError, UserError
from se_flax.weights.files import read_bytes


def read_index(path: pathlib.Path) -> dict[pathlib.Path, list[str]]:
    """Returns the names of the tensors in each shard; each is a file beside the index.

    Raises UserError for JSON that is no index, and MissingError where shards are not there.
    """
    try:
        weight_map = json.loads(read_bytes(path))['weight_map']
        shards: dict[pathlib.Path, list[str]] = {}
        for name, shard in weight_map.items():
            if shard in ('', '..') or pathlib.PurePath(shard).name != shard or '\\' in shard:
                raise UserError(f'{path} names the shard {shard!r}, which is not beside it')
            shards.setdefault(path.with_name(shard), []).append(name)
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f'{path} is JSON, but no index of shards with a weight_map') from None
    if missing := sorted(shard.name for shard in shards if not shard.is_file()):
        raise MissingError(f'{path} needs {", ".join(missing)} beside it; fetch what is missing')
    if not shards:
        raise UserError(f'{path} names no shards')
    return shards
