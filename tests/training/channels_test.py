"""A run on gray images, from the command line to what its network is good for."""

import jax
import numpy as np
import pytest
from PIL import Image

from se_flax import cli
from se_flax.errors import UserError
from se_flax.inference import (
    evaluate_networks,
    open_run,
    open_weights,
    predict,
    save_run_weights,
)
from se_flax.training.config import base_config, check_config
from se_flax.weights import read_info
from se_flax.weights.files import read_safetensors

GRAY = ('in_channels=1', 'mean=72.4', 'std=89.6', 'fill=0')


def test_a_gray_run_trains_and_is_used(train_main, tmp_path, capsys):
    workdir = tmp_path / 'gray'
    fields = (*GRAY, 'num_steps=2', 'checkpoint_every_steps=2')
    assert train_main(workdir, *(f'--config.{field}' for field in fields)) == 0
    run = open_run(workdir)
    assert run.network.variables['params']['conv_stem']['kernel'].shape == (3, 3, 1, 16)
    result = evaluate_networks([run]).summary()
    assert result['examples'] == 2000

    Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28)).save(tmp_path / 'gray.png')
    [(_, guesses)] = predict(run, [tmp_path / 'gray.png'])
    assert sum(p for _, p in guesses) <= 1.0001

    weights, out = tmp_path / 'gray.safetensors', tmp_path / 'gray.stablehlo'
    save_run_weights(workdir, weights)
    info = read_info(weights)
    assert info.fields['in_channels'] == 1
    assert info.preprocessing.mean == (72.4,)
    cut = tmp_path / 'cut.safetensors'
    options = ['--head=drop', '--in-channels=2', f'--out={cut}']
    assert cli.main(['convert', str(workdir), *options]) == 0
    info = read_info(cut)
    assert (info.num_classes, info.class_names) == (0, ())
    assert (info.fields['in_channels'], info.preprocessing.mean) == (2, (72.4, 72.4))
    assert 'params/head/kernel' not in read_safetensors(cut)[1]
    again = evaluate_networks([open_weights(weights)], 'fashion_mnist_mini').summary()
    assert again['top1'] == pytest.approx(result['top1'], abs=2e-3)  # other batches
    assert cli.main(['export', f'--weights={weights}', '--platforms=cpu', f'--out={out}']) == 0
    assert 'uint8[b,28,28,1], gray' in capsys.readouterr().out
    exported = jax.export.deserialize(out.read_bytes())
    assert exported.call(np.zeros((2, 28, 28, 1), np.uint8)).shape == (2, 10)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'in_channels': 0}, 'in_channels=0 must be at least 1'),
        ({'in_channels': 1}, r'mean=.* must have 1 number, as in_channels=1'),
        ({'std': (1.0,)}, r'std=\(1.0,\) must have 3 numbers'),
        (
            {'in_channels': 4, 'mean': (1.0,) * 4, 'std': (1.0,) * 4},
            r'fill=\(0, 0, 0\) must have 4 numbers, as in_channels=4',
        ),
    ],
)
def test_each_channel_has_its_numbers(fields, message):
    config = base_config()
    config.update(fields)
    with pytest.raises(UserError, match=message):
        check_config(config, 1)
