"""README's example, from the hub (a cache that the test writes) to a fine-tuned network."""

import json
import os
import pathlib
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import safetensors.numpy

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text()
CONFIG = {
    'pretrained_cfg': {
        **{'input_size': [3, 224, 224], 'crop_pct': 0.95, 'interpolation': 'bicubic'},
        **{'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]},
    },
}
TINY = (
    '--config.image_size=32 --config.num_steps=2 --config.batch_size=4 --config.eval_batch_size=4'
)


def commands(mark):
    block = README.split(mark, 1)[1].split('```', 2)[1]
    found = re.findall(r'^\.venv/bin/((?:se-flax|python) .*)$', block, re.M)
    assert found
    return found


@pytest.fixture
def home(tmp_path, weights):
    """A folder in which README's commands find their files."""
    for name in ('train_main.py', 'configs'):
        (tmp_path / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            folder = tmp_path / 'photos' / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                image = rng.integers(256, size=(48, 64, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f'{i}.jpg'), image)
    (tmp_path / 'cat.jpg').symlink_to(tmp_path / 'photos/train/cat/0.jpg')

    modules = weights.resnet_modules((3, 4, 6, 3), 3, style='timm', se=True)
    state = weights.to_torch(modules, weights.flat_variables('timm_seresnet50'))
    weights.hub_cache(
        *(tmp_path / 'hub', 'timm/seresnet50.a1_in1k'),
        model_safetensors=safetensors.numpy.save(state, {'format': 'pt'}),
        config_json=json.dumps(CONFIG).encode(),
    )
    return tmp_path


def test_readmes_example(home):
    environ = os.environ | {'HF_HUB_CACHE': str(home / 'hub'), 'HF_HUB_OFFLINE': '1'}
    environ |= {'JAX_PLATFORMS': 'cpu'}

    def run(command):
        program, rest = command.split(' ', 1)
        path = (
            sys.executable if program == 'python' else pathlib.Path(sys.executable).parent / program
        )
        done = subprocess.run(
            f'{path} {rest}', shell=True, cwd=home, env=environ, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    convert, predict = commands('## A network with public weights')
    assert run(convert) == (
        'seresnet50.safetensors: timm_seresnet50 from timm, 1,000 classes; '
        'images of 224 pixels, resized to 235 (bicubic_antialias)\n'
    )
    assert re.fullmatch(r'cat.jpg\n(  class \d+ +\d+\.\d\d %\n){5}', run(predict))

    train, evaluate = commands('<!-- ci:fine-tune -->')
    assert 'of 8 images after 2 steps' in run(f'{train} {TINY}')
    told = run(evaluate)
    # 235 of 224 pixels are 34 of 32
    assert told.startswith(
        'runs/photos, step 2: center crop of 32 pixels (resize 34)\n8 images of '
    )
    assert re.search(r'^top-5 +0.00 %', told, re.M)  # of two classes
