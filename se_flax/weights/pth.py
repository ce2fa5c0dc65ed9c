"""PyTorch's own files, read with its unpickler of tensors alone."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

from se_flax.errors import UserError, extra_needed
from se_flax.weights.files import check_file


def read_pth(path: pathlib.Path) -> Mapping[str, Any]:
    """Returns what a file of torch.save holds, tensors on the CPU; needs PyTorch.

    Raises MissingError where there is no file, and UserError for one that is damaged or holds
    anything but tensors and arguments in containers: code in it is not run.
    """
    check_file(path)
    with extra_needed():
        import torch  # nothing else here needs it

    try:
        # A trainer's arguments often lie beside the weights; the class only holds them.
        allowed = torch.serialization.safe_globals([argparse.Namespace])
        with allowed, path.open('rb') as file:  # opened, as PyTorch goes by a path's suffix
            loaded = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged pickle can raise any
        cause = str(error).partition('\n')[0] or type(error).__name__
        if 'Unsupported global' in str(error) or 'weights_only' in str(error):
            cause = (
                'it holds more than tensors, which would be code to run; '
                'save the state_dict() of the model alone'
            )
        raise UserError(f'{path} cannot be read: {cause}') from None
    return loaded
