"""PyTorch's own files: read as tensors, never run. Needs PyTorch."""

import pathlib

import numpy as np
import pytest

from se_flax.errors import MissingError, UserError
from se_flax.weights import convert, from_torch
from se_flax.weights.files import read_pth

pytestmark = pytest.mark.quick

torch = pytest.importorskip('torch')


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.mkdir, (pathlib.Path(self.path),)


def tensors(state, dtype=torch.float32):
    return {
        key: torch.tensor(value, dtype=dtype if value.ndim else torch.int64)
        for key, value in state.items()
    }


@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_file_does_not_run(weights, tmp_path, zipped):
    path, trap = tmp_path / 'evil.pth', tmp_path / 'ran'
    state = tensors(weights.state) | {'code': Payload(trap)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r'evil.pth cannot be read: it contains more than tensors'):
        read_pth(path)
    with pytest.raises(UserError, match='it contains more than tensors'):
        convert(str(path), 'resnet8_cifar', tmp_path / 'out.safetensors')
    assert not trap.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert trap.exists()


def test_a_whole_model_is_told_apart(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / 'model.pt')
    with pytest.raises(UserError, match=r'save only the state_dict\(\) of the model'):
        read_pth(tmp_path / 'model.pt')


def test_tensors_of_other_kinds(weights):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        state = tensors(weights.state, dtype)
        state['output.weight'] = state['output.weight'].requires_grad_()
        variables = from_torch('resnet8_cifar', state, **weights.fields)
        want = state['output.weight'].detach().float().numpy().T
        np.testing.assert_array_equal(variables['params']['head']['kernel'], want)
    state = tensors(weights.state)
    for bias, message in [
        (torch.zeros(10, dtype=torch.int32), 'output.bias has dtype int32, not a float'),
        (torch.zeros(10, device='meta'), 'output.bias is not a plain tensor'),
        (torch.zeros(10).to_sparse(), 'output.bias is not a plain tensor'),
        (torch.zeros(1).expand(10), 'output.bias has more elements than its storage'),
        (torch.zeros(1).expand(1 << 40), 'output.bias has more elements than its storage'),
    ]:
        with pytest.raises(UserError, match=message):
            from_torch('resnet8_cifar', state | {'output.bias': bias}, **weights.fields)


def test_damaged_files(weights, tmp_path):
    path = tmp_path / 'w.pth'
    torch.save(tensors(weights.state), path)
    good = path.read_bytes()
    for data in (b'', good[:100], good[: len(good) // 2], b'\x80\x02', b'words', good[:-300]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r'w.pth cannot be read: .'):
            read_pth(path)
    with pytest.raises(MissingError, match=r'no file .*none.pth; similar files there: w.pth'):
        read_pth(tmp_path / 'none.pth')
