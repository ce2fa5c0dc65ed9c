"""What README and the pages of `docs/` show is what happens."""

import contextlib
import os
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from se_flax import cli, create_model, list_models
from se_flax.training.config import base_config, parse_args
from se_flax.weights import save_weights
from se_flax.weights.info import BICUBIC

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / 'README.md'
DOCS = ROOT / 'docs'
PAGES = [README, ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md', *sorted(DOCS.rglob('*.md'))]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
HOOKS = runpy.run_path(str(DOCS / 'hooks.py'))
by_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(language, page):
    return re.findall(rf'```{language}\n(.*?)```', page.read_text(), re.DOTALL)


def commands(text, program=r'python train_main\.py'):
    """The arguments of each command line in a text."""
    lines = re.findall(rf'(?:\.venv/bin/)?{program}[^`"\n;]*', text.replace('\\\n', ''))
    return [shlex.split(line, comments=True)[program.count(' ') + 1 :] for line in lines]


SHALLOW = {'stage_sizes': (1, 1, 1, 1), 'width': 16}


def run_python(page, names):
    """Runs a page's blocks; its networks of 50 layers have one thin unit a stage."""
    shallow = ', '.join(['\\1', *(f'{name}={value}' for name, value in SHALLOW.items())])
    with jax.default_prng_impl('rbg'):  # compiles faster than the default
        for block in blocks('python', page):
            exec(re.sub(r"(create_model\('\w*resnet50')", shallow, block), names)
    return names


def test_readme_is_two_screens():
    assert len(README.read_text().splitlines()) <= 150


def test_readmes_python_runs_from_top_to_bottom():
    names = run_python(README, {})
    assert names['logits'].shape == (1, 10)
    y = names['Block']().init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 32)))[0]
    assert y.shape == (2, 8, 8, 32)


def test_the_nnx_page_trains():
    names = run_python(DOCS / 'guides/nnx.md', {})
    rngs, images = names['nnx'].Rngs(0), jnp.ones((4, 16, 16, 3))
    assert names['NNXBlock'](32, rngs=rngs)(jnp.ones((2, 8, 8, 32))).shape == (2, 8, 8, 32)
    step = names['nnx_model'], names['optimizer'], images, jnp.zeros(4, int)
    losses = [names['train_step'](*step) for _ in range(3)]
    assert losses[-1] < losses[0]


def test_the_networks_page_runs(capsys):
    page = DOCS / 'reference/networks.md'
    run_python(page, {})
    assert cli.main(['info', 'se_resnet50']) == 0
    assert capsys.readouterr().out in blocks('text', page)


def test_the_backbone_page_runs(tmp_path, monkeypatch):
    """With weights that are written here."""
    monkeypatch.chdir(tmp_path)
    name = 'timm_seresnet50'
    model = create_model(name, 10, **SHALLOW)
    drawn = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
    # No zero where gradients would end.
    drawn = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.01), drawn)
    save_weights('seresnet50.safetensors', name, drawn, BICUBIC, fields=SHALLOW)
    names = run_python(DOCS / 'guides/backbone.md', {})
    assert names['features'].shape == (2, 512)
    np.testing.assert_allclose(np.linalg.norm(names['embeddings'], axis=-1), 1, rtol=1e-6)
    shapes = {stage: x.shape for stage, x in names['maps'].items()}
    assert shapes['C1'] == (2, 64, 64, 16)
    assert shapes['C5'] == (2, 4, 4, 512)
    assert (names['kinds'].shape, names['prices'].shape) == ((2, 10), (2, 1))
    levels = jax.eval_shape(names['pyramid'].apply, names['variables'], names['images'])
    assert {k: v.shape for k, v in levels.items()} == {
        f'P{n}': (2, 128 >> n, 128 >> n, 256) for n in (2, 3, 4, 5)
    }
    before, after = names['variables']['params'], names['params']
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), before, after)
    assert jax.tree.all(
        same['backbone'] | {'stage3_block1': True, 'stage4_block1': True, 'stage5_block1': True}
    )
    assert not same['backbone']['stage5_block1']['conv1']['kernel']
    assert same['backbone']['stage5_block1']['norm1'] == {'bias': True, 'scale': True}
    assert not same['lateral_C2']['kernel']
    assert np.array_equal(
        before['backbone']['conv_stem']['kernel'], drawn['params']['conv_stem']['kernel']
    )
    assert all(map(np.any, jax.tree.leaves(names['grads']['head']['bias'])))


def test_a_run_from_the_quick_start_to_its_export(tmp_path, monkeypatch, capsys, train_main):
    """The commands of three pages, one after the other; training is shortened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    Image.new('L', (28, 28), 128).save('shirt.png')
    quickstart = DOCS / 'start/quickstart.md'
    mine, longer, _ = (a for a in commands(quickstart.read_text()) if '--workdir' in str(a))
    short = ['--config.num_steps=3', '--config.eval_every_steps=3']

    def train(argv):
        assert train_main(argv[1].removeprefix('--workdir='), argv[0], *argv[2:], *short) == 0

    assert '--workdir=runs/mine' in mine
    train(mine)
    [convert] = commands('\n'.join(blocks('bash', quickstart)), 'se-flax')
    assert cli.main(convert) == 0
    train(longer)
    assert (tmp_path / 'runs/longer/DONE').exists()
    for page in (DOCS / 'start/predict.md', DOCS / 'guides/export.md'):
        for argv in commands('\n'.join(blocks('bash', page)), 'se-flax'):
            capsys.readouterr()
            argv = argv[: argv.index('[...]')] if '[...]' in argv else argv
            assert cli.main(argv) == 0, argv
        names = run_python(page, {})
    assert names['logits'].shape == (5, 10)


def test_the_tracker_of_the_docs(tmp_path):
    names = run_python(DOCS / 'guides/watch.md', {})
    with names['to_csv']({}, tmp_path) as write:
        write({'step': 3, 'split': 'train', 'loss': 0.5})
    assert (tmp_path / 'mine.csv').read_text() == 'train,3,0.5\n'


@pytest.mark.parametrize('name', ['start/quickstart', 'start/fine_tune', 'guides/weights'])
def test_commands_that_a_page_repeats_are_readmes(name):
    """As `.ci/run` and tests/weights/fine_tuning_test.py run those of README."""
    page = (DOCS / f'{name}.md').read_text()
    marked = r'<!-- run: (?:\.ci/run|tests/weights/\S+) -->\n```bash\n(.*?)```'
    blocks = re.findall(marked, page, re.DOTALL)
    assert blocks
    for line in ''.join(blocks).splitlines():
        assert line in README.read_text()


def test_the_data_page_lists_data_sets(tmp_path, capsys):
    every, one, _ = commands((DOCS / 'guides/data.md').read_text(), 'se-flax data check')
    assert cli.main(['data', 'check', *every]) == 0
    assert 'fashion_mnist_mini' in capsys.readouterr().out
    assert cli.main(['data', 'check', *one, '--data-dir', str(tmp_path)]) == 2
    assert 'run: se-flax data prepare cifar10' in capsys.readouterr().err


@pytest.mark.slow
def test_imagenet_on_a_laptop(tmp_path, environ):
    """The block of the page as bash runs it: two processes, one of them killed."""
    [block] = re.findall(
        r'<!-- imagenet -->\n```bash\n(.*?)```', (DOCS / 'guides/imagenet.md').read_text(), re.S
    )
    for name in ('train_main.py', 'configs', 'scripts'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / '.venv').symlink_to(sys.prefix)
    environ = environ | {'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': str(ROOT)}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    bash = subprocess.Popen(
        ['bash', '-c', block], cwd=tmp_path, env=environ, start_new_session=True, **pipes
    )
    try:
        out, _ = bash.communicate(timeout=1800)  # where a process fails, the block waits for ever
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(bash.pid, signal.SIGKILL)
    assert bash.returncode == 0, out
    assert 'the other process ended with code 142' in out
    assert re.search(r'^top-1 .* %', out, re.M)
    assert (tmp_path / 'runs/tiny/DONE').exists()


@by_page
def test_linked_files_exist(page):
    linked = re.findall(r'\]\((?!\w+:|#)([^)#]+)', page.read_text())
    assert [path for path in linked if not (page.parent / path).exists()] == []


@by_page
def test_each_block_of_commands_is_run_or_says_that_it_is_not(page):
    """Before a block stands the test that runs it, or a sentence that none does."""
    if page.name in ('CONTRIBUTING.md', 'CHANGELOG.md'):
        return
    for before in page.read_text().split('```bash\n')[:-1]:
        before = before.rpartition('```')[2]
        run = re.findall(r'<!-- run: (\S+)', before)
        told = '*Not run by the tests' in before or re.search('<!-- ci:', before)
        assert run or told, before[-300:]
        assert all((ROOT / path).exists() for path in run)


@by_page
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = page.read_text().replace('gs://', '/')  # no bucket is within reach of tests
    programs = r'python train_main\.py', 'se-flax train', r'sbatch deploy/slurm\.sbatch'
    for argv in (argv for program in programs for argv in commands(text, program)):
        argv = [word for word in argv if word.startswith('-')]
        config, workdir, _ = parse_args(argv)
        assert config.model or config.init_from  # the weights know theirs
        assert str(workdir).startswith(('runs/', '/'))  # the root: what hosts share
    parser = cli.make_parser()
    for argv in commands('\n'.join(blocks('bash', page)), 'se-flax'):
        _, rest = parser.parse_known_args(argv)
        rest = [] if argv[0] == 'train' else rest  # parsed above
        assert all(word.startswith(('--config.', '$')) for word in rest), argv


def test_batch_files_say_their_commands(monkeypatch):
    monkeypatch.chdir(ROOT)
    page, train, ablate = (
        (ROOT / name).read_text()
        for name in ('docs/guides/clusters.md', 'deploy/slurm.sbatch', 'deploy/slurm_ablate.sbatch')
    )
    [argv] = commands(train, r'sbatch deploy/slurm\.sbatch')
    assert [argv] == commands(page, r'sbatch deploy/slurm\.sbatch')
    parse_args(argv)
    [argv] = commands(ablate, r'sbatch deploy/slurm_ablate\.sbatch')
    assert [argv] == commands(page, r'sbatch --array=0-7 deploy/slurm_ablate\.sbatch')
    assert cli.make_parser().parse_known_args(['ablate', *argv])[1] == []


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_each_config_says_its_command(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    said = commands(path.read_text())
    assert said
    for argv in said:
        parse_args(argv)
        named = any(str(path.relative_to(ROOT)) in word for word in argv)
        assert named or path.stem == 'quickstart'


def test_the_expected_errors_are_those_of_the_configs():
    rows = re.findall(
        r'^\| `(\w+\.py)\S*` \| .*? \| (.*?) \|', (DOCS / 'guides/imagenet.md').read_text(), re.M
    )
    papers = {path.name for path in CONFIGS} - {'quickstart.py', 'fine_tune.py'}
    assert {name for name, _ in rows} == papers
    for name, expected in rows:
        said = (ROOT / 'configs' / name).read_text()
        assert [n for n in re.findall(r'\d+\.\d+', expected) if n not in said] == []


def test_the_reference_is_generated_from_the_code():
    made = {name: make() for name, make in HOOKS['GENERATED'].items()}
    used = re.findall(r'<!-- generated: (\w+)', ''.join(page.read_text() for page in PAGES))
    assert sorted(used) == sorted(made)
    assert [name for name in base_config() if f'| `{name}` |' not in made['fields']] == []
    assert [name for name in list_models() if f'| {name} |' not in made['networks']] == []
    assert [path.name for path in CONFIGS if f'## {path.name}' not in made['recipes']] == []
    for command in ('se-flax train', 'se-flax data prepare', 'se-flax analyze excitation'):
        assert f'## {command}\n' in made['commands']
    for name in ('nn.SqueezeExcite', 'models.create_model', 'weights.load_weights', 'data.decode'):
        assert f'::: se_flax.{name}\n' in made['api']


def test_links_are_rewritten_for_the_site():
    rewrite = HOOKS['rewrite_links']
    assert rewrite('[a](docs/guides/data.md)', 'index.md') == '[a](guides/data.md)'
    assert rewrite('[a](../../benchmarks/results/cpu.md#x)', 'explanations/speed.md') == (
        '[a](../benchmarks/cpu.md#x)'
    )
    assert rewrite('[a](https://a.b/c) [b](#d)', 'guides/data.md') == '[a](https://a.b/c) [b](#d)'
    assert rewrite('![a](docs/a.png) [b](setup.cfg)', 'index.md') == '![a](a.png) b'
    assert rewrite('`a[b](c)` [`x`](setup.cfg)', 'index.md') == '`a[b](c)` `x`'
