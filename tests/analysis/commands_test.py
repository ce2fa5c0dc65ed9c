"""The commands as a user gives them: studies that are killed, pages, pictures, mistakes."""

import fcntl
import json
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from se_flax import cli
from se_flax.analysis.excitation import measure_gates, se_blocks
from se_flax.analysis.pilot import duration
from se_flax.analysis.results import both_tables
from se_flax.analysis.statistics import seeds_needed
from se_flax.analysis.study import STUDIES
from se_flax.data import open_dataset
from se_flax.inference import open_run
from se_flax.nn import EXCITE
from se_flax.training import curves
from se_flax.training.metrics_log import read_rows

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = str(ROOT / 'configs' / 'quickstart.py')
pytestmark = pytest.mark.usefixtures('own_cache')
TINY = (
    *('--config.num_steps=6', '--config.checkpoint_every_steps=2', '--config.log_every_steps=1'),
    *('--config.model_fields.width=16', '--config.model_fields.stage_sizes=(1,1)'),
    *('--config.batch_size=32', '--config.eval_batch_size=400', '--config.cache=false'),
)
ONE_BLOCK = '--config.model_fields.stage_sizes=(1,)'
SQUEEZE = ('ablate', 'squeeze', '--config', QUICKSTART, '--seeds', '2', *TINY)


@pytest.fixture(scope='session')
def cache(shared_folder):
    return f'--config.compilation_cache={shared_folder / "study_cache"}'


@pytest.fixture(scope='session')
def se_flax(environ):
    """`se_flax(*arguments, **variables)` starts the command in a process of its own."""
    environ = environ | {'JAX_NUM_CPU_DEVICES': '1'}  # compiles in half the time

    def start(*arguments, **variables):
        command = [sys.executable, '-m', 'se_flax.cli', *arguments]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
        return subprocess.Popen(command, env=environ | variables, text=True, **pipes)

    return start


def ended(process, code=0):
    text, _ = process.communicate(timeout=400)
    assert process.returncode == code, text
    assert 'Traceback' not in text
    return text


@pytest.fixture(scope='session')
def study(shared_folder, cache, se_flax):
    """A study that nobody disturbed; its runs are not to be written to."""
    out = shared_folder / 'squeeze'
    with (shared_folder / 'study_lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / 'results.png').exists():
            text = ended(se_flax(*SQUEEZE, cache, '--out', str(out)))
            assert re.findall(r'^(\S+), seed (\d): \d\d\.\d\d %$', text, re.M) == [
                ('average', '0'), ('max', '0'), ('average', '1'), ('max', '1'),
            ]  # fmt: skip
    return out


def results(out, timed=False):
    rows = [json.loads(line) for line in (out / 'results.jsonl').read_text().splitlines()]
    return (
        rows
        if timed
        else [{k: v for k, v in row.items() if k != 'images_per_second'} for row in rows]
    )


def steps_of(out):
    return sum(len(read_rows(path)) for path in out.glob('runs/*/*/metrics.jsonl'))


@pytest.mark.faults
def test_killed_twice_and_finished_as_two_shards_it_is_the_same(study, tmp_path, cache, se_flax):
    out, rng = tmp_path / 'squeeze', random.Random(1)
    command = [*SQUEEZE, cache, '--out', str(out)]
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = se_flax(*command)
        until = steps_of(out) + rng.randint(2, 7)
        while steps_of(out) < until:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        text, _ = process.communicate(timeout=100)
        assert process.returncode in (-signal.SIGKILL, 143), text
    assert 'nothing is lost; to resume: ' in text
    ended(se_flax(*command, '--shard', '1/2'))
    assert results(out) != results(study)
    slurm = {'ID': '4', 'MIN': '4', 'MAX': '5', 'STEP': '1', 'COUNT': '2'}
    ended(se_flax(*command, **{f'SLURM_ARRAY_TASK_{name}': of for name, of in slurm.items()}))
    assert results(out) == results(study)
    assert all(len(row['seeds']) == 2 for row in results(study))


def test_a_finished_study_trains_nothing_and_has_its_tables(study, tmp_path, capsys, cache):
    out = shutil.copytree(study, tmp_path / 'squeeze')
    before = {path: path.stat().st_mtime_ns for path in out.glob('runs/*/*/*')}
    (out / 'results.jsonl').unlink()
    assert cli.main([*SQUEEZE, cache, '--out', str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob('runs/*/*/*')} == before
    assert results(out) == results(study)
    shown = capsys.readouterr().out
    for row in results(study):
        assert f'{row["top1_error_mean"]:.2f} ± {row["top1_error_std"]:.2f}' in shown
        assert f'{row["params"]:,}' in shown


def test_the_images_that_a_run_is_right_about_are_those_of_its_result(study):
    for done in study.glob('runs/*/*/DONE'):
        right = np.load(done.with_name('right.npy'), allow_pickle=False)
        result = json.loads(done.read_text())
        assert (right.dtype, right.shape) == (bool, (result['examples'],))
        # A program compiled anew may round differently, which can decide a tie.
        assert abs(right.sum() - result['examples'] * result['top1']) < 2
    _, row = results(study)
    assert row['images_low'] <= row['difference'] <= row['images_high']


def test_a_pilot_resumes_and_tells_what_the_study_needs(
    study, tmp_path, capsys, cache, monkeypatch
):
    out = shutil.copytree(study, tmp_path / 'squeeze')
    command = [*SQUEEZE, cache, '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', ['se-flax', *command, '--pilot', '--detect=1.5'])
    killed, cleaned, *_ = sorted(out.glob('runs/*/*/right.npy'))
    before = np.load(killed)
    killed.unlink()  # as if the process had been killed before it was written
    cleaned.unlink()
    shutil.rmtree(cleaned.with_name('checkpoints'))
    done = out / 'runs' / 'se_resnet8_cifar_se.squeeze=max' / 'seed0' / 'DONE'
    # After six steps the cells are equal, but a pilot needs a deviation.
    done.write_text(json.dumps(json.loads(done.read_text()) | {'top1': 0.16}))
    assert cli.main(sys.argv[1:]) == 0
    assert np.mean(np.load(killed) != before) < 2e-3  # here are eight devices
    assert not cleaned.exists()
    _, row = results(out)
    assert row['images_low'] is None
    page = (out / 'pilot.md').read_text()
    assert page in capsys.readouterr().out
    seeds = seeds_needed(row['deviation'], 1.5)
    assert f'| max | average | 2 | {row["deviation"]:.2f} |' in page
    assert f'| {seeds:,} |' in page
    assert 'difference of 1.5 points' in page
    ran = sum(
        json.loads(done.read_text())['goodput']['seconds'] for done in out.glob('runs/*/*/DONE')
    )
    assert f', of which {duration(ran)} are done' in page
    again = shlex.split(page.splitlines()[-1])
    expected = [text for text in ['se-flax', *command] if text not in ('--seeds', '2')]
    assert again == [*expected, '--seeds', str(max(seeds, 2))]


def test_differences_are_drawn_from_the_rows_alone(study, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, 'save', lambda figure, path: drawn.append(figure))
    monkeypatch.chdir(ROOT)
    ours = tmp_path / 'ours'
    ours.mkdir()
    shutil.copy(study / 'results.jsonl', ours)
    page = (ROOT / 'docs' / 'guides' / 'studies.md').read_text()
    [command] = re.findall(r'se-flax (analyze differences .*)', page)
    command = shlex.split(command)
    assert cli.main([*command[:4], str(ours), *command[4:]]) == 0
    assert capsys.readouterr().out == 'differences.png\n'
    _, size, axes = drawn[0].axes
    assert size.get_title(loc='left').endswith('docs/experiments/size: each against its baseline')
    assert axes.get_title(loc='left').endswith('ours: against average')
    assert [label.get_text() for label in axes.get_yticklabels()] == ['max']
    _, row = results(study)
    np.testing.assert_allclose(axes.lines[1].get_xdata(), [row['difference']])


def test_a_run_that_is_not_finite_fails_alone(tmp_path, capsys, cache):
    out = tmp_path / 'grid'
    vary = '--vary=learning_rate=0.1,1e30'
    command = ['ablate', 'grid', vary, '--config', QUICKSTART, '--seeds', '1', *TINY, ONE_BLOCK]
    assert cli.main([*command, cache, '--out', str(out)]) == 1
    told = capsys.readouterr()
    assert 'learning_rate=1e30, seed 0: not finite' in told.out
    assert 'failed: learning_rate=1e30, seed 0: ' in told.err
    assert [row['cell'] for row in results(out)] == ['learning_rate=0.1']


def test_a_shard_without_a_run_names_the_files_that_are_there(tmp_path, capsys, cache):
    out = tmp_path / 'squeeze'
    assert cli.main([*SQUEEZE, cache, '--out', str(out), '--shard', '8/9']) == 0
    told = capsys.readouterr().out.splitlines()[-1].removeprefix(f'{out}: ')
    assert all((out / name).exists() for name in told.split(', '))


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['ablate', 'networks'], '--networks resnet50,vgg16'),
        (['ablate', 'networks', '--networks', 'resnet8_cifr'], 'did you mean resnet8_cifar'),
        (['ablate', 'networks', '--networks', 'timm_senet154'], 'timm_senet154 is not one of a'),
        (
            ['ablate', 'squeeze', '--networks', 'vgg16'],
            '--networks is for the study networks, not for squeeze',
        ),
        (['ablate', 'squeeze', '--config.data=fashion_mnist_mni'], 'fashion_mnist_mini'),
        (['ablate', 'squeeze', '--shard', '2/2'], '--shard 2/2: must be I/N'),
        (['ablate', 'squeeze', '--runs', 'gs://bucket/runs'], 'not in a bucket'),
        (['ablate', 'squeeze', '--seeds', '0'], '--seeds=0 must be at least 1'),
        (['ablate', 'squeeze', '--pilot', '--seeds', '1'], '--seeds=1 must be at least 2'),
        (['ablate', 'squeeze', '--detect', '1'], '--detect is for --pilot'),
        (['ablate', 'squeeze', '--pilot', '--detect', '0'], '--detect=0 must be from 0.001 to 100'),
        (['ablate', 'grid'], 'the study grid needs --vary, such as --vary model_fields.'),
        (['ablate', 'grid', '--vary', 'reduction'], '--vary reduction: must be FIELD=VALUE,VALUE'),
        (['ablate', 'grid', '--vary', 'seed=1,2'], '--vary seed=1,2: each run has a seed'),
        (['ablate', 'grid', '--vary', 'ema=0', '--vary', 'ema=0.9'], 'another --vary sets ema;'),
        (
            ['ablate', 'grid', '--vary=model_fields.se.reduction=4', '--vary=model_fields.se={}'],
            'another --vary sets model_fields.se.reduction; give all values in one',
        ),
        (['ablate', 'grid', '--vary', 'model_fields.se.exite=relu'], 'did you mean excite'),
        (['ablate', 'reduction', '--config.model_fields.width=16'], "cell '32': reduction=32"),
        (['ablate', 'squeeze', '--config.model=resnet8_cifar'], 'use se_resnet8_cifar'),
        (['ablate', 'stages', '--config.model=resnet8_cifar'], 'use se_resnet8_cifar'),
        (['ablate', 'squeeze', '--config.model_fields.se=None'], 'has no SE to study'),
        (['report', 'here'], 'is neither a study'),
        (['analyze', 'curves', 'here'], 'not the workdir of a run'),
        (['analyze', 'differences', 'here'], 'here has no results.jsonl'),
        (['analyze', 'excitation', '--workdir', 'here'], 'not the workdir of a run'),
        (['analyze', 'complexity', '--networks', 'resnt50'], 'did you mean resnet50'),
        (['analyze', 'complexity', '--batch-size', '0'], '--batch-size=0 must be at least 1'),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_made(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[0] == 'ablate':
        arguments = [*arguments, '--config', QUICKSTART, '--out', 'study']
    assert cli.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith('error: ')
    assert told.count('\n') == 1
    assert words in told
    assert list(tmp_path.iterdir()) == []


def test_names_are_told_before_what_is_missing(capsys):
    assert cli.main(['ablate', 'squeze', '--config.seeed=1', '--sed=3']) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == 'error: 3 mistakes:'
    assert told[1].startswith("  unknown argument '--sed': did you mean --seeds")
    assert told[2] == "  unknown study 'squeze': did you mean squeeze or nosqueeze?"
    assert told[3].startswith('  a study needs --config and --out, such as se-flax ablate squeeze ')
    assert cli.main(['ablate', 'squeeze', '--config', QUICKSTART]) == 2
    assert capsys.readouterr().err.startswith('error: a study needs --config and --out, such as')


def test_without_a_name_the_studies_are_listed(capsys):
    assert cli.main(['ablate']) == 0
    told = capsys.readouterr().out
    for name, study in STUDIES.items():
        assert re.search(f'^{name} +{re.escape(study.title)}$', told, re.M)
    assert re.search('^grid .*--vary', told, re.M)
    [start] = re.findall('^example: se-flax (.*)$', told, re.M)
    assert cli.make_parser().parse_args(start.split()).study in STUDIES


def test_a_cell_and_the_config_are_checked_as_in_training(tmp_path, capsys):
    command = ['ablate', 'squeeze', '--config', QUICKSTART, '--out', str(tmp_path / 'out')]
    assert cli.main([*command, '--config.schedul=step', '--config.crop=pads']) == 2
    told = capsys.readouterr().err
    assert all(text in told for text in ('2 mistakes', 'did you mean schedule', 'did you mean pad'))


def test_excitation_of_a_run_and_the_page_with_it(study, tmp_path, capsys):
    run = shutil.copytree(study / 'runs' / 'se_resnet8_cifar' / 'seed0', tmp_path / 'run')
    out = run / 'excitation'
    command = ['analyze', 'excitation', '--workdir', str(run), '--samples', '20']
    assert cli.main([*command, '--classes', 'Trouser,Bag', '--out', str(out)]) == 0
    shown = capsys.readouterr().out
    rows = re.findall(r'^\| (stage\w+) \| (.*) \|$', shown, re.M)
    assert [name for name, _ in rows] == ['stage2_block1', 'stage3_block1']
    lines = (out / 'excitation.csv').read_text().splitlines()
    assert len(lines) == 1 + 10 * (16 + 32)
    assert (out / 'excitation.md').read_text() in shown
    for name in ('between_classes.png', 'within_classes.png'):
        assert (out / name).read_bytes().startswith(b'\x89PNG')
    assert cli.main([*command, '--classes', 'Trousers', '--out', str(tmp_path / 'no')]) == 2
    assert "class of fashion_mnist_mini 'Trousers': did you mean Trouser" in capsys.readouterr().err
    assert cli.main(['report', str(run)]) == 0
    page = (run / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == 3
    cells = [re.findall('<td.*?>(.*?)</td>', row) for row in page.split('<tr>')]
    assert all([name, *row.split(' | ')] in cells for name, row in rows)


def test_gates_tell_classes_apart_unless_they_see_nothing(study):
    """Units that start as identities show SE a map of zeros."""
    trained = open_run(study / 'runs' / 'se_resnet8_cifar' / 'seed0').network
    model, image = trained.model.clone(zero_init=True), jnp.zeros((1, 28, 28, 3))
    variables = jax.jit(model.init)(jax.random.key(0), image)
    identities = trained._replace(model=model, variables=variables)
    dataset = open_dataset('fashion_mnist_mini', 'eval')
    of_trained, of_identities = (
        measure_gates(network, blocks, dataset, 20, batch_size=200)
        for network in (trained, identities)
        for blocks in [se_blocks(network.model, network.variables, 28)]
    )
    assert of_trained[-1].specificity > of_trained[-1].shuffled + 0.1
    for gates in of_identities:
        assert abs(gates.specificity - gates.shuffled) < 0.01


def test_curves_of_two_runs(study, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, 'save', lambda figure, path: drawn.append(figure))
    runs = [str(study / 'runs' / 'se_resnet8_cifar' / f'seed{seed}') for seed in (0, 1)]
    assert cli.main(['analyze', 'curves', *runs, '--out', str(tmp_path / 'curves.png')]) == 0
    loss, error = drawn[0].axes
    [legend] = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ['seed0', 'seed1']
    for run, line in zip(runs, error.lines, strict=True):
        rows = [row for row in read_rows(f'{run}/metrics.jsonl') if row['split'] == 'eval']
        np.testing.assert_allclose(line.get_ydata(), [100 * (1 - row['top1']) for row in rows])
    assert (loss.get_xlabel(), error.get_ylabel()) == (
        'training step',
        'top-1 error, all evaluation images (%)',
    )


def test_a_page_holds_all_and_asks_nothing(study, tmp_path, capsys):
    page, run_page = tmp_path / 'study.html', tmp_path / 'run.html'
    run = study / 'runs' / 'se_resnet8_cifar' / 'seed0'
    for directory, out in ((study, page), (run, run_page)):
        assert cli.main(['report', str(directory), '--out', str(out)]) == 0
        text = out.read_text()
        assert not re.search(r'(src|href)="(?!data:)', text)
        assert 'url(' not in text
        assert '<script' not in text
        assert 'data:image/png;base64,' in text
    for row in results(study):
        assert f'>{row["top1_error_mean"]:.2f} ± {row["top1_error_std"]:.2f}</td>' in (
            page.read_text()
        )
    cells, comparisons = both_tables(results(study, timed=True))
    shown = [re.findall('<td.*?>(.*?)</td>', row) for row in page.read_text().split('<tr>')]
    assert all(row in shown for row in [*cells[1:], *comparisons[1:]])
    assert 'Gates' not in run_page.read_text()
    last = read_rows(run / 'metrics.jsonl')[-1]
    assert f'>{last["loss"]:.4f}</td>' in run_page.read_text()
    assert cli.main(['report', str(run), '--out', str(tmp_path)]) == 2
    assert 'it is a folder' in capsys.readouterr().err


def test_the_new_ablation_of_the_docs(tmp_path, monkeypatch, cache):
    page = (ROOT / 'docs' / 'guides' / 'new_ablation.md').read_text()
    config, later = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    [command] = re.findall(r'se-flax (ablate .*)', page)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'double_sigmoid.py').write_text(config)
    monkeypatch.setitem(EXCITE, 'double_sigmoid', None)  # undone: no trace of it in other tests
    assert cli.main([*shlex.split(command), '--seeds', '1', *TINY, ONE_BLOCK, cache]) == 0
    out = tmp_path / 'runs' / 'double_sigmoid'
    cells = [row['cell'] for row in results(out)]
    assert cells == ['se.excite=sigmoid', 'se.excite=double_sigmoid']
    losses = [read_rows(path)[-1]['loss'] for path in out.glob('runs/*/*/metrics.jsonl')]
    assert len(set(losses)) == 2
    monkeypatch.delitem(EXCITE, 'double_sigmoid')
    exec(later, {})
    [page] = tmp_path.glob('runs/double_sigmoid/runs/*/seed0/excitation/excitation.md')
    assert 'stage2_block1' in page.read_text()
