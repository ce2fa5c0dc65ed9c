"""timm's weights from the Hugging Face hub, by huggingface_hub and its cache."""

import json
import logging
import math
import pathlib
from typing import Any

from se_flax.errors import MissingError, UserError, check_known, extra_needed
from se_flax.models import timm_architectures
from se_flax.weights.files import read_bytes, read_safetensors
from se_flax.weights.fill import adapt
from se_flax.weights.info import Preprocessing, WeightsInfo, parse_preprocessing
from se_flax.weights.state_dict import read_state_dict

logger = logging.getLogger(__name__)
EXAMPLES = (
    'timm/legacy_senet154.in1k',
    'timm/legacy_seresnet50.in1k',
    'timm/seresnet50.a1_in1k',
    'timm/legacy_seresnext50_32x4d.in1k',
    'timm/resnet50.tv_in1k',
)


def from_hub(
    repo_id: str,
    cache_dir: str | pathlib.Path | None = None,
    *,
    head: str = 'keep',
    in_channels: int | None = None,
) -> tuple[str, dict[str, Any]]:
    """Returns the registered name and the variables of timm's weights on the Hugging Face hub.

    `repo_id` is such as 'timm/legacy_senet154.in1k'. What is in `cache_dir`, by default that of
    huggingface_hub, needs no network. `head` and `in_channels` are as in `load_weights`. Raises
    MissingError for weights that cannot be downloaded.
    """
    info, variables = adapt(*read_hub(repo_id, cache_dir), head, in_channels)
    return info.model, variables


def read_hub(
    repo_id: str, cache_dir: str | pathlib.Path | None = None
) -> tuple[WeightsInfo, dict[str, Any]]:
    network = repo_id.partition('.')[0]  # an id is timm/ARCHITECTURE.TAG
    known = {f'timm/{architecture}': name for architecture, name in timm_architectures().items()}
    check_known('weights', network, known)
    weights = _fetch(repo_id, 'model.safetensors', cache_dir)
    config = _fetch(repo_id, 'config.json', cache_dir)
    view = _preprocessing(config)
    info, variables = read_state_dict(known[network], read_safetensors(weights)[1], {})
    return info._replace(preprocessing=view), variables


def _fetch(repo_id: str, name: str, cache_dir: str | pathlib.Path | None) -> pathlib.Path:
    with extra_needed():
        import huggingface_hub
        from huggingface_hub import errors

    try:
        # A tag's weights do not change, and asking the hub first is slow without a network.
        path = huggingface_hub.try_to_load_from_cache(repo_id, name, cache_dir)
        if not isinstance(path, str):
            path = huggingface_hub.hf_hub_download(repo_id, name, cache_dir=cache_dir)
        return pathlib.Path(path)
    except errors.HFValidationError:
        raise UserError(f'{repo_id!r} is not an id on the hub, such as {EXAMPLES[0]}') from None
    except errors.RepositoryNotFoundError:
        check_known('weights on the hub', repo_id, EXAMPLES)
        raise UserError(f'{repo_id} does not exist on the hub') from None
    except Exception as error:  # the network's have no other class in common
        reason = str(error).partition('\n')[0] or type(error).__name__
        raise MissingError(
            f'{name} of {repo_id} is not in the huggingface_hub cache and cannot be downloaded '
            f'({reason}); on a machine with a network: hf download {repo_id}'
        ) from None


def _preprocessing(config: pathlib.Path) -> Preprocessing:
    """From timm's config: the shorter edge is the size over `crop_pct`, rounded down."""
    text = read_bytes(config)
    try:
        entry = json.loads(text)['pretrained_cfg']
        size = entry['input_size'][-1]
        view = {
            'image_size': size,
            'resize': math.floor(size / entry['crop_pct']),
            'interpolation': f'{entry["interpolation"]}_antialias',
            'mean': [255 * v for v in entry['mean']],
            'std': [255 * v for v in entry['std']],
        }
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise UserError(f'{config} is not a valid timm config: {error!r}') from None
    if (mode := entry.get('crop_mode', 'center')) != 'center':
        logger.warning("timm's crop_mode=%r is not supported: the center is cut out instead", mode)
    return parse_preprocessing(view)
