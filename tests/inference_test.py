"""Evaluation and prediction from the workdir of a real run, finished or not."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from functools import partial

import cv2
import jax
import numpy as np
import pytest

from se_flax import cli
from se_flax.data import decode, open_dataset
from se_flax.evaluation import wilson
from se_flax.evaluation.protocols import Protocol
from se_flax.inference import evaluate_networks, open_run, predict
from se_flax.training.metrics_log import read_rows


def content(workdir):
    files = sorted(path for path in workdir.rglob('*') if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_evaluate_gives_the_last_evaluation_of_the_run_in_every_digit(reference, capsys):
    before = content(reference)
    done = json.loads((reference / 'DONE').read_text())
    run = open_run(reference)
    evaluation = evaluate_networks([run])
    assert (run.step, evaluation.data) == (done['step'], 'fashion_mnist_mini')
    result = evaluation.summary()
    assert result == {name: done[name] for name in ('loss', 'top1', 'top5', 'examples')}
    assert content(reference) == before

    assert cli.main(['evaluate', '--workdir', str(reference)]) == 0
    out, err = capsys.readouterr()
    assert err == ''
    assert out.splitlines() == lines_of(f'{reference}, step 24', result)


def lines_of(network, result):
    """What `se-flax evaluate` prints."""
    return [
        f'{network}: center crop of 28 pixels (resize none)',
        f'2,000 images of fashion_mnist_mini, loss {result["loss"]:.4f}',
        '         error     95 % interval  accuracy',
        table_line('top-1', result['top1']),
        table_line('top-5', result['top5']),
    ]


def table_line(name, share):
    low, high = wilson(round(2000 * (1 - share)), 2000)
    interval = f'{100 * low:5.2f} to {100 * high:5.2f} %'
    return f'{name}  {100 * (1 - share):5.2f} %  {interval}   {100 * share:5.2f} %'


def test_a_run_becomes_a_weights_file_that_says_the_same(reference, tmp_path, capsys, monkeypatch):
    """Also a folded network. The home folder behind an option is expanded."""
    monkeypatch.setenv('HOME', str(tmp_path))
    out, predictions = tmp_path / 'mine.safetensors', tmp_path / 'p.csv'
    assert cli.main(['convert', str(reference), '--out=~/mine.safetensors']) == 0
    told = capsys.readouterr().out
    assert 'se_resnet8_cifar from se_flax, 10 classes; images of 28 pixels' in told
    command = ['evaluate', '--weights=~/mine.safetensors', '--data=fashion_mnist_mini']
    assert cli.main(command) == 0
    of_file = capsys.readouterr().out
    want = lines_of(out, json.loads((reference / 'DONE').read_text()))
    assert of_file.splitlines() == want
    assert cli.main([*command, '--fold', '--predictions=~/p.csv']) == 0
    without_loss = partial(re.sub, r'loss [\d.]+', '')  # which differs by rounding
    told = f'{of_file}predictions: {predictions}\n'
    assert without_loss(capsys.readouterr().out) == without_loss(told)
    assert predictions.exists()


@pytest.mark.faults
def test_evaluate_beside_a_trainer_changes_nothing(reference, tmp_path, start_train_main, kill_run):
    """The trainer stands still, wherever it is, so that each change is the evaluation's."""
    process = start_train_main(tmp_path)
    while not any(row['step'] >= 5 for row in read_rows(tmp_path / 'metrics.jsonl')):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # each of its threads
    before = content(tmp_path)
    run = open_run(tmp_path)
    evaluate_networks([run])
    assert content(tmp_path) == before
    process.send_signal(signal.SIGCONT)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert 2 <= run.step < 24  # the checkpoint of 4 may be under way
    assert kill_run['differences'](reference, tmp_path) == []


def test_an_ensemble_with_two_crops_told_in_all_ways(reference, tmp_path, capsys):
    """A run and its own weights, which are one network: as the run alone, at another batch size."""
    weights, file = tmp_path / 'same.safetensors', tmp_path / 'p.csv'
    assert cli.main(['convert', str(reference), '--out', str(weights)]) == 0
    capsys.readouterr()
    networks = ['--workdir', str(reference), '--weights', str(weights)]
    views = ['--size', '20', '--resize', '28', '--crops', '2', '--batch-size', '333']
    outputs = ['--per-class', '--predictions', str(file)]
    assert cli.main(['evaluate', *networks, *views, *outputs]) == 0
    table, _, told = capsys.readouterr().out.partition('\n\n')

    protocol = Protocol((20,), (28,), crops=2)
    alone = evaluate_networks([open_run(reference)], protocol=protocol)
    summary = alone.summary()
    described = 'center crop and mirror image of 20 pixels (resize 28)'
    lines = told.splitlines()
    assert lines[:3] == [
        f'{reference}, step 24: {described}',
        f'{weights}: {described}',
        '4 views per image, probabilities averaged',
    ]
    assert lines[5:] == [
        table_line('top-1', summary['top1']),
        table_line('top-5', summary['top5']),
        f'predictions: {file}',
    ]

    with file.open(newline='') as rows:
        rows = list(csv.DictReader(rows))
    assert [int(row['index']) for row in rows] == list(range(2000))
    assert sum(row['class_1'] == row['label'] for row in rows) == round(2000 * summary['top1'])
    head, *body = (line.rsplit(maxsplit=5) for line in table.splitlines())
    assert ' '.join(head) == 'class images top-1 error top-5 error'
    assert sum(int(images) for _, images, *_ in body) == 2000
    wrong = dict.fromkeys(alone.class_names, 0)
    for row in rows:
        wrong[row['label_name']] += row['class_1'] != row['label']
    assert {name: error for name, _, error, *_ in body} == {
        name: f'{100 * count / 200:.2f}' for name, count in wrong.items()
    }
    errors = [float(error) for _, _, error, *_ in body]
    assert errors == sorted(errors, reverse=True)


def test_dtype_is_that_of_the_maps(reference):
    run = open_run(reference, 'bfloat16')
    assert run.network.model.dtype == jax.numpy.bfloat16
    result = evaluate_networks([run])
    wide = json.loads((reference / 'DONE').read_text())['loss']
    assert result.summary()['loss'] != wide
    assert result.summary()['loss'] == pytest.approx(wide, rel=0.01)  # of 8 bits


def test_evaluate_refuses_a_set_of_other_classes(reference, capsys):
    assert cli.main(['evaluate', '--workdir', str(reference), '--data', 'synthetic']) == 2
    assert "first in number 0: '0 degrees' instead of 'T-shirt/top'" in capsys.readouterr().err


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
    trained = open_run(reference)
    network = trained.network
    pixels = np.stack([cv2.imread(str(path)) for path in images[:3]])  # gray: BGR is RGB
    normalized = (pixels - np.float32(network.mean)) / np.float32(network.std)
    logits = jax.jit(network.model.apply)(network.variables, normalized)
    wanted = np.asarray(jax.nn.softmax(logits))
    for (_, guesses), p in zip(predict(trained, images[:3]), wanted, strict=True):
        want = dict(zip(trained.class_names, p, strict=True))
        names, probabilities = zip(*guesses, strict=True)
        assert len(names) == 5
        assert sum(probabilities) < 1 + 1e-5  # float32
        assert list(probabilities) == sorted(probabilities, reverse=True)
        # A probability's relative error is its logit's absolute one, and logits differ by 80 here:
        # float32 rounds those by 1e-5 and more.
        np.testing.assert_allclose(probabilities, [want[name] for name in names], rtol=1e-3)
        assert names[0] == max(want, key=want.get)


def test_predict_of_no_images_is_empty(reference):
    assert list(predict(open_run(reference), [])) == []


def test_predict_prints_five_classes_an_image(reference, images, capsys):
    assert cli.main(['predict', '--workdir', str(reference), *map(str, images)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::6] == [str(path) for path in images]
    want = list(predict(open_run(reference), images))
    assert cli.main(['predict', '--fold', '--workdir', str(reference), *map(str, images)]) == 0
    folded = capsys.readouterr().out.splitlines()
    assert [line.split('.')[0] for line in folded] == [line.split('.')[0] for line in lines]
    for i, (_, guesses) in enumerate(want):
        shown = [line.rsplit(maxsplit=2) for line in lines[6 * i + 1 : 6 * i + 6]]
        assert [(name.strip(), p, unit) for name, p, unit in shown] == [
            (name, f'{100 * p:.2f}', '%') for name, p in guesses
        ]


def test_predict_reads_a_folder_and_names_what_it_cannot_read(
    reference, images, tmp_path, capsys, caplog
):
    folder = tmp_path / 'photos'
    for i in range(70):  # more than a batch
        path = folder / f'{i:02}' / 'photo.png'
        path.parent.mkdir(parents=True)
        path.write_bytes(images[i % 3].read_bytes() if i % 7 else b'no image')
    (folder / 'notes.txt').write_text('')
    paths = [str(folder / f'{i:02}' / 'photo.png') for i in range(70)]
    command = ['predict', '--workdir', str(reference), '--batch-size=16', str(folder)]
    assert cli.main(command) == 2
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line[0] != ' '] == [
        path for i, path in enumerate(paths) if i % 7
    ]
    assert err.splitlines()[-1] == 'error: 10 of 70 images cannot be read'
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == f'{folder}: ignored 1 files: 1 .txt'
    assert [line.partition(': ')[0] for line in told[1:]] == paths[::7]

    file = tmp_path / 'said.csv'
    assert cli.main([*command, '--csv', str(file)]) == 2
    with file.open(newline='') as rows:
        rows = list(csv.DictReader(rows))
    assert [row['key'] for row in rows] == [path for i, path in enumerate(paths) if i % 7]
    assert 'label' not in rows[0]
    alone = dict(predict(open_run(reference), images[:3]))
    for row in rows:
        [(name, p), *_] = alone[str(images[int(row['index']) % 3])]
        assert (row['name_1'], float(row['probability_1'])) == (name, pytest.approx(p, rel=1e-3))


def test_finished_work_is_told_before_its_report_is_written(reference, tmp_path, capsys):
    """The file is tried first; where writing it fails at the end, the result has been told."""
    command = ['evaluate', '--workdir', str(reference), '--predictions']
    folder = tmp_path / 'folder.csv'
    folder.mkdir()
    assert cli.main([*command, str(folder)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ('', f'error: cannot write {folder}: it is a folder\n')

    def fail(*_):
        raise OSError('No space left on device')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('se_flax.evaluation.predictions.write_text', fail)
        assert cli.main([*command, str(tmp_path / 'p.csv')]) == 2
    out, err = capsys.readouterr()
    assert '2,000 images of fashion_mnist_mini, loss' in out
    assert err == 'error: No space left on device\n'


def test_a_pipe_that_nobody_reads_and_a_strict_terminal(reference, images, tmp_path, environ):
    image = tmp_path / 'café.png'
    image.write_bytes(images[0].read_bytes())
    script = pathlib.Path(sys.executable).with_name('se-flax')  # as it is installed
    command = f'{script} predict --workdir {reference} {image}'
    strict = environ | {'PYTHONIOENCODING': 'ascii:strict'}
    done = subprocess.run(command, shell=True, env=strict, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'{tmp_path}/caf\\xe9.png\n'.encode())
    shell = ['bash', '-c', f'{command} {image} | true; echo ${{PIPESTATUS[0]}}']
    done = subprocess.run(shell, env=environ, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('141\n', '')


def test_mistakes_are_told_in_a_line(reference, images, tmp_path, capsys):
    (tmp_path / 'words.png').write_text('no image')
    (tmp_path / 'cut.jpg').write_bytes(images[3].read_bytes()[:-200])
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'config.json').write_text('{"architecture": "resnet50"}')
    (tmp_path / 'early').mkdir()
    (tmp_path / 'early' / 'config.json').write_bytes((reference / 'config.json').read_bytes())
    folder = str(tmp_path)
    for command, message in [
        (['predict', reference, 'words.png'], '1 of 1 images cannot be read'),
        (
            ['predict', tmp_path / 'other', '0.png'],
            f'{folder}/other is not the workdir of a run: its config.json has no class_names',
        ),
        (['predict', reference, 'cut.jpg', '0.png'], '1 of 2 images cannot be read'),
        (['predict', reference, 'early'], f'no images in {folder}/early: no file ends in .jpg'),
        (['predict', reference, '0.png', '--csv=no/p.csv'], 'cannot write no/p.csv: '),
        (['predict', reference, '4.png'], f'no image {folder}/4.png; its folder has 0.png, 1.png'),
        (
            ['predict', tmp_path / 'no', '0.png'],
            f'{folder}/no is not the workdir of a run: it has no ',
        ),
        (['evaluate', tmp_path / 'earl'], f'{folder}/earl is not the workdir of a run: it has no '),
        (['evaluate', tmp_path / 'early'], f'no finished checkpoint in {folder}/early/checkpoints'),
        (['evaluate', reference, '--size=32', '--resize=28'], 'resize=28 is below image_size=32; '),
        (['evaluate', reference, '--crops=10'], 'crops=10 needs a resize, but resize=0; use'),
        (['evaluate', reference, '--crops=9'], 'unknown crops 9: one of 1, 2, 10, 12'),
        (['evaluate', reference, '--average=mean'], "unknown average 'mean': one of probabilities"),
        (
            ['evaluate', reference, '--dtype=float16'],
            "unknown dtype 'float16': did you mean bfloat16 or ",
        ),
        (['evaluate', reference, '--batch-size=0'], 'batch_size=0 must be at least 1'),
        (['evaluate', reference, '--predictions=p.txt'], "unknown kind of predictions file '.txt'"),
    ]:
        verb, workdir, *rest = command
        rest = [r if r.startswith('--') else f'{folder}/{r}' for r in rest]
        assert cli.main([verb, '--workdir', str(workdir), *rest]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f'error: {message}'), error
        assert error.count('\n') == 1
    assert not (tmp_path / 'no').exists()
