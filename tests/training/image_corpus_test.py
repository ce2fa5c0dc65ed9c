"""Every product path over image files and folders of every odd kind: no traceback, no silence."""

import csv
import json

import pytest

from se_flax import cli
from se_flax.data.imagenet import encode
from se_flax.inference import open_run

from ..image_corpus import READABLE, SUFFIX, UNREADABLE


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes without splits; and the files that cannot be read."""
    root = tmp_path / 'photos'
    unreadable = []
    for i, (name, data) in enumerate((*READABLE.items(), *UNREADABLE.items())):
        kind = name.partition(',')[0]
        path = root / ('café', 'tea')[i % 2] / str(i % 3) / f'{i:03}.{SUFFIX.get(kind, "png")}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        unreadable += [str(path)] * (name in UNREADABLE)
    for name in ('tea/.ipynb_checkpoints/0.png', '@eaDir/0.png', 'tea/._0.png'):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b'')
    return root, unreadable


def named(caplog, deed):
    """The files that warnings are of."""
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    assert not [line for line in lines if '\n' in line]
    return {line.partition(': ')[0] for line in lines if line.endswith(deed)}


def test_train_evaluate_predict_and_fine_tune(photos, tmp_path, train_main, capfd, caplog):
    root, unreadable = photos
    fields = [
        *(f'data=folder:{root}', 'eval_split=0.3', 'max_corrupt=0.9', 'batch_size=8'),
        *('num_steps=30', 'eval_every_steps=30', 'checkpoint_every_steps=30', 'eval_batch_size=16'),
        'exif_orientation=true',
    ]
    fields = [f'--config.{field}' for field in fields]
    assert train_main(tmp_path / 'run', *fields) == 0
    met = named(caplog, '; replaced by the next image') | named(caplog, '; skipped')
    out, err = capfd.readouterr()
    assert 'Traceback' not in out + err
    assert json.loads((tmp_path / 'run/config.json').read_text())['class_names'] == ['café', 'tea']
    assert open_run(tmp_path / 'run').network.view.exif_orientation

    assert cli.main(['evaluate', '--workdir', str(tmp_path / 'run')]) == 0
    met |= named(caplog, '; skipped')
    out, err = capfd.readouterr()
    result = json.loads((tmp_path / 'run/DONE').read_text())
    assert f'{result["examples"]} images of folder:' in out
    assert met <= set(unreadable)

    file = tmp_path / 'said.csv'
    command = ['predict', '--workdir', str(tmp_path / 'run'), str(root), '--csv', str(file)]
    assert cli.main(command) == 2
    assert named(caplog, '; skipped') == set(unreadable)
    with file.open(newline='') as rows:
        assert len(list(csv.DictReader(rows))) == len(READABLE)
    out, err = capfd.readouterr()
    total = len(READABLE) + len(UNREADABLE)
    assert f'error: {len(unreadable)} of {total} images cannot be read' in err
    assert 'Traceback' not in out + err

    weights = tmp_path / 'w.safetensors'
    assert cli.main(['convert', str(tmp_path / 'run'), '--out', str(weights)]) == 0
    caplog.clear()
    fields += [f'--config.init_from={weights}', '--config.num_steps=2']
    assert train_main(tmp_path / 'tuned', *fields) == 0
    out, err = capfd.readouterr()
    assert 'head kept' in out
    assert 'Traceback' not in out + err


@pytest.mark.parametrize('options', [{}, {'quality': 80}, {'max_side': 20, 'quality': 80}])
def test_preparing_imagenet(options):
    for name, data in READABLE.items():
        assert encode(data, **options)[:2] == b'\xff\xd8', name
    for data in UNREADABLE.values():
        if data[:2] != b'\xff\xd8' or options:  # the bytes of a JPEG are kept
            with pytest.raises(ValueError, match='.'):
                encode(data, **options)
