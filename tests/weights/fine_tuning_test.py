"""README's example, from the hub (a cache that the test writes) to a fine-tuned network."""

import json
import pathlib
import re
import shlex
from functools import partial

import cv2
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

from se_flax import cli
from se_flax.models import registry

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text()
CONFIG = {
    'pretrained_cfg': {
        **{'input_size': [3, 224, 224], 'crop_pct': 0.95, 'interpolation': 'bicubic'},
        **{'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]},
    },
}
NAME, SMALL = 'timm_seresnet50', {'stage_sizes': (1, 1, 1, 1), 'width': 16}
TINY = ('image_size=32', 'num_steps=2', 'batch_size=8', 'eval_batch_size=8', 'compilation_cache=')


def commands(mark):
    block = README.split(mark, 1)[1].split('```', 2)[1]
    found = re.findall(r'^\.venv/bin/(?:se-flax|python train_main\.py) (.*)$', block, re.M)
    assert found
    return map(shlex.split, found)


@pytest.fixture
def home(tmp_path, weights, monkeypatch):
    """The working directory has README's files; its network is a small one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    make, size = registry._ENTRIES[NAME]
    monkeypatch.setitem(registry._ENTRIES, NAME, (partial(make, **SMALL), size))
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            folder = tmp_path / 'photos' / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                image = rng.integers(256, size=(48, 64, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f'{i}.jpg'), image)
    (tmp_path / 'cat.jpg').symlink_to(tmp_path / 'photos/train/cat/0.jpg')

    modules = weights.resnet_modules(SMALL['stage_sizes'], 3, style='timm', se=True)
    state = weights.to_torch(modules, weights.flat_variables(NAME))
    weights.hub_cache(
        *(tmp_path / 'hub', 'timm/seresnet50.a1_in1k'),
        model_safetensors=safetensors.numpy.save(state, {'format': 'pt'}),
        config_json=json.dumps(CONFIG).encode(),
    )


def test_readmes_example(home, capsys):
    def run(argv):
        assert cli.main(argv) == 0
        return capsys.readouterr().out

    convert, predict = commands('## A network with public weights')
    assert run(convert) == (
        'seresnet50.safetensors: timm_seresnet50 from timm, 1,000 classes; '
        'images of 224 pixels, resized to 235 (bicubic_antialias)\n'
    )
    assert re.fullmatch(r'cat.jpg\n(  class \d+ +\d+\.\d\d %\n){5}', run(predict))

    train, evaluate = commands('<!-- ci:fine-tune -->')
    tiny = [f'--config.{field}' for field in TINY]
    assert 'of 8 images after 2 steps' in run(['train', *train, *tiny])
    told = run(evaluate)
    # 235 of 224 pixels are 34 of 32
    assert told.startswith(
        'runs/photos, step 2: center crop of 32 pixels (resize 34)\n8 images of '
    )
    assert re.search(r'^top-5 +0.00 %', told, re.M)  # of two classes
