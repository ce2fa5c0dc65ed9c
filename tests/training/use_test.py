"""Evaluation and prediction from the workdir of a real run, finished or not."""

import json
import re
import signal
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest

from se_flax import cli
from se_flax.data import decode, open_dataset
from se_flax.training.metrics_log import read_rows
from se_flax.training.use import evaluate_run, predict
from se_flax.training.workdir import load_run


def content(workdir):
    files = sorted(path for path in workdir.rglob('*') if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_evaluate_gives_the_last_evaluation_of_the_run_in_every_digit(reference, capsys):
    before = content(reference)
    done = json.loads((reference / 'DONE').read_text())
    result = evaluate_run(reference)
    assert result.pop('data') == 'fashion_mnist_mini'
    assert result == {name: done[name] for name in ('step', 'loss', 'top1', 'top5', 'examples')}
    assert content(reference) == before

    assert cli.main(['evaluate', '--workdir', str(reference)]) == 0
    loss, top1, top5 = result['loss'], 100 * result['top1'], 100 * result['top5']
    assert capsys.readouterr().out == (
        f'step 24: loss {loss:.4f}, top-1 {top1:.2f} %, top-5 {top5:.2f} % '
        'of 2,000 images of fashion_mnist_mini\n'
    )


def test_a_run_becomes_a_weights_file_that_says_the_same(reference, tmp_path, capsys):
    out = tmp_path / 'mine.safetensors'
    assert cli.main(['convert', str(reference), '--out', str(out)]) == 0
    told = capsys.readouterr().out
    assert 'se_resnet8_cifar from se_flax, 10 classes; images of 28 pixels' in told
    assert cli.main(['evaluate', '--workdir', str(reference)]) == 0
    of_run = capsys.readouterr().out
    data = ['--data', 'fashion_mnist_mini']
    assert cli.main(['evaluate', '--weights', str(out), *data]) == 0
    assert re.sub('^step [0-9]+: ', '', of_run) == capsys.readouterr().out


def test_evaluate_beside_a_trainer_changes_nothing(reference, tmp_path, start_train_main, kill_run):
    """The trainer stands still, wherever it is, so that each change is the evaluation's."""
    process = start_train_main(tmp_path)
    while not any(row['step'] >= 5 for row in read_rows(tmp_path / 'metrics.jsonl')):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    before = content(tmp_path)
    result = evaluate_run(tmp_path)
    assert content(tmp_path) == before
    process.send_signal(signal.SIGCONT)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert 4 <= result['step'] < 24
    assert kill_run['differences'](reference, tmp_path) == []


def test_evaluate_refuses_a_set_of_other_classes(reference, capsys):
    assert cli.main(['evaluate', '--workdir', str(reference), '--data', 'synthetic']) == 2
    assert 'synthetic has other classes (0 degrees, ' in capsys.readouterr().err


@pytest.fixture
def images(tmp_path):
    """Three evaluation images as PNG, and one of them as a larger JPEG."""
    dataset = open_dataset('fashion_mnist_mini', 'eval')
    paths = []
    for i in range(3):
        paths.append(tmp_path / f'{i}.png')
        cv2.imwrite(str(paths[-1]), decode(dataset.read(i)[0]))
    paths.append(tmp_path / 'large.jpg')
    cv2.imwrite(str(paths[-1]), cv2.resize(cv2.imread(str(paths[0])), (90, 70)))
    return paths


def test_predict_equals_the_network_on_the_pixels(reference, images):
    network = load_run(reference)
    for path, guesses in zip(images[:3], predict(reference, images[:3], top=10), strict=True):
        pixels = cv2.imread(str(path)).astype(np.float32)  # gray: BGR is RGB
        normalized = (pixels - np.float32(network.config.mean)) / np.float32(network.config.std)
        logits = network.model.apply(network.variables, normalized[None], train=False)[0]
        want = dict(zip(network.class_names, np.asarray(jax.nn.softmax(logits)), strict=True))
        names, probabilities = zip(*guesses, strict=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-6)
        assert list(probabilities) == sorted(probabilities, reverse=True)
        np.testing.assert_allclose(probabilities, [want[name] for name in names], rtol=1e-5)
        assert names[0] == max(want, key=want.get)


def test_predict_prints_five_classes_an_image(reference, images, capsys):
    assert cli.main(['predict', '--workdir', str(reference), *map(str, images)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::6] == [str(path) for path in images]
    want = list(predict(reference, images))
    for i, guesses in enumerate(want):
        shown = [line.rsplit(maxsplit=2) for line in lines[6 * i + 1 : 6 * i + 6]]
        assert [(name.strip(), p, unit) for name, p, unit in shown] == [
            (name, f'{100 * p:.2f}', '%') for name, p in guesses
        ]


def test_mistakes_are_told_in_a_line(reference, images, tmp_path, capsys):
    (tmp_path / 'words.png').write_text('no image')
    (tmp_path / 'cut.jpg').write_bytes(images[3].read_bytes()[:-200])
    (tmp_path / 'early').mkdir()
    (tmp_path / 'early' / 'config.json').write_bytes((reference / 'config.json').read_bytes())
    folder = str(tmp_path)
    for command, message in [
        (['predict', reference, 'words.png'], f'cannot read image {folder}/words.png: not an '),
        (['predict', reference, 'cut.jpg'], f'cannot read image {folder}/cut.jpg: '),
        (['predict', reference, '4.png'], f'no image {folder}/4.png; that folder has 0.png, 1.png'),
        (['predict', tmp_path / 'no', '0.png'], f'{folder}/no is no workdir of a run: it has no '),
        (['evaluate', tmp_path / 'earl'], f'{folder}/earl is no workdir of a run: it has no '),
        (['evaluate', tmp_path / 'early'], f'no finished checkpoint in {folder}/early/checkpoints'),
    ]:
        verb, workdir, *names = command
        assert cli.main([verb, '--workdir', str(workdir), *(f'{folder}/{n}' for n in names)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f'error: {message}'), error
        assert error.count('\n') == 1
    assert not (tmp_path / 'no').exists()


def test_the_console_script_is_installed():
    command = [sys.executable, '-m', 'se_flax.cli', 'evaluate', '--workdir', 'nowhere']
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith('error: nowhere is no workdir of a run')
