"""What a workdir gives back is what its run has measured, and nothing in the folder changes."""

import json
import re
import shutil

import cv2
import jax
import numpy as np
import pytest

from se_flax import cli
from se_flax.data import open_dataset
from se_flax.errors import MissingError, UserError
from se_flax.training.use import evaluate_run, predict
from se_flax.training.workdir import load_run


def snapshot(folder):
    entries = sorted(folder.rglob('*'))
    return [(p, p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in entries]


@pytest.fixture(scope='module')
def dresses(tmp_path_factory):
    """Three images of the eval split as files, as grey and as RGB PNG, and as arrays."""
    folder = tmp_path_factory.mktemp('dresses')
    dataset = open_dataset('fashion_mnist_mini', 'eval')
    paths, arrays = [], []
    for i in (0, 700, 1999):
        grey = cv2.imdecode(np.frombuffer(dataset.read(i)[0], np.uint8), cv2.IMREAD_GRAYSCALE)
        paths.append(folder / f'{i}.png')
        cv2.imwrite(str(paths[-1]), grey if i else np.dstack([grey] * 3))
        arrays.append(np.dstack([grey] * 3))
    return paths, arrays


# Evaluate


def test_evaluating_gives_the_last_evaluation_of_the_run_in_every_digit(reference):
    done = json.loads((reference / 'DONE').read_text())
    result = evaluate_run(reference)
    assert result.pop('data') == 'fashion_mnist_mini'
    assert result == {name: done[name] for name in result}
    assert result.keys() == {'step', 'loss', 'top1', 'top5', 'examples'}
    assert result['examples'] == 2000


def test_evaluating_beside_a_trainer_reads_the_finished_step_and_changes_nothing(
    reference, tmp_path
):
    """Beside it are a step that Orbax writes, one without its manifest and one cut short."""
    workdir = tmp_path / 'run'
    shutil.copytree(reference, workdir)
    (workdir / 'DONE').unlink()
    newest = max(int(p.name) for p in (workdir / 'checkpoints').iterdir())
    for name in (f'{newest + 4}.orbax-checkpoint-tmp', f'{newest + 4}', f'{newest + 2}'):
        shutil.copytree(workdir / f'checkpoints/{newest}', workdir / 'checkpoints' / name)
    (workdir / f'checkpoints/{newest + 4}/manifest.json').unlink()
    (workdir / f'checkpoints/{newest + 2}/_CHECKPOINT_METADATA').write_text('')
    before = snapshot(workdir)
    result = evaluate_run(workdir)
    assert result == evaluate_run(reference)
    assert snapshot(workdir) == before


def test_the_command_prints_them(reference, capsys):
    assert cli.main(['evaluate', '--workdir', str(reference)]) == 0
    done = json.loads((reference / 'DONE').read_text())
    assert capsys.readouterr().out == (
        f'step {done["step"]}: loss {done["loss"]:.4f}, top-1 {done["top1"]:.2%}, '
        f'top-5 {done["top5"]:.2%} of 2,000 images of fashion_mnist_mini\n'
    ).replace('%,', ' %,').replace('% of', ' % of')


def test_another_data_set_must_have_the_classes_of_the_run(reference):
    with pytest.raises(
        UserError, match=r'synthetic has other classes \(0 degrees, .* run \(T-shirt'
    ):
        evaluate_run(reference, data='synthetic')


# Predict


def test_probabilities_equal_a_direct_computation(reference, dresses):
    paths, arrays = dresses
    run = load_run(reference)
    mean, std = np.array(run.config.mean), np.array(run.config.std)
    images = ((np.stack(arrays) - mean) / std).astype(np.float32)
    logits = np.asarray(run.model.apply(run.variables, images, train=False), np.float64)
    want = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = open_dataset('fashion_mnist_mini', 'train').class_names

    got = list(predict(reference, paths, top=10))
    assert len(got) == 3
    for guesses, row in zip(got, want, strict=True):
        assert [p for _, p in guesses] == sorted((p for _, p in guesses), reverse=True)
        assert sum(p for _, p in guesses) == pytest.approx(1, abs=1e-6)
        assert dict(guesses) == pytest.approx(dict(zip(names, row, strict=True)), rel=1e-4)
    assert not np.allclose(want[0], want[1], atol=1e-3), 'all images look alike to it'
    assert [guesses[:5] for guesses in got] == list(predict(reference, paths))


def test_the_command_prints_names_and_percentages(reference, dresses, capsys):
    paths, _ = dresses
    before = snapshot(reference)
    assert cli.main(['predict', '--workdir', str(reference), *map(str, paths)]) == 0
    assert snapshot(reference) == before
    lines = iter(capsys.readouterr().out.splitlines())
    for path, guesses in zip(paths, predict(reference, paths), strict=True):
        assert next(lines) == str(path)
        for name, p in guesses:
            assert re.fullmatch(rf'  {re.escape(name)} +{100 * p:.2f} %', next(lines))
    assert list(lines) == []


# Mistakes


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['evaluate', '--workdir=gone'], 'gone is no workdir of a run: it has no config.json'),
        (['evaluate', '--workdir=other'], 'other is no workdir of a run: it has no config.json'),
        (['evaluate', '--workdir=young'], 'no finished checkpoint in HERE/young/checkpoints; '),
        (['predict', '--workdir=young', 'cat.png'], 'no image cat.png; that folder has text.png'),
        (['predict', '--workdir=young', 'text.png'], 'cannot read image text.png: '),
        (['predict', '--workdir=young', 'other'], 'no image other; that folder has text.png'),
        (['predict', '--workdir=young', 'x/y.png'], 'no image x/y.png; that folder has no files'),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    reference, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'young' / 'checkpoints').mkdir(parents=True)
    shutil.copy(reference / 'config.json', tmp_path / 'young')
    (tmp_path / 'text.png').write_text('no picture')
    assert cli.main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ''
    assert errors.startswith('error: ' + message.replace('HERE', str(tmp_path)))
    assert errors.count('\n') == 1


def test_the_workdirs_nearby_are_named(reference, tmp_path):
    for name in ('first', 'second'):
        (tmp_path / name).mkdir()
        shutil.copy(reference / 'config.json', tmp_path / name)
    with pytest.raises(MissingError, match=r'it has no config.json; there is .*first, .*second$'):
        load_run(tmp_path / 'frist')


def test_a_config_that_was_edited_by_hand_is_named(reference, tmp_path):
    text = (reference / 'config.json').read_text()
    (tmp_path / 'config.json').write_text(text[:-10])
    with pytest.raises(UserError, match=r'config\.json is not as it was written'):
        load_run(tmp_path)


def test_a_network_of_other_shapes_is_refused_with_the_leaves(reference, tmp_path):
    shutil.copytree(reference, tmp_path / 'run')
    path = tmp_path / 'run' / 'config.json'
    config = json.loads(path.read_text())
    config['model_fields']['width'] *= 2
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r'is of another model or optimizer: .*float32\[.* leaves'):
        load_run(tmp_path / 'run')
    assert jax.tree.leaves(load_run(reference).variables)
