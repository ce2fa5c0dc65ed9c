"""The command line of a run, the files in configs/, and every message about a mistake in them."""

import ast
import dataclasses
import itertools
import pathlib
import re
import shlex

import pytest

from se_flax.analysis import ablate
from se_flax.analysis.plan import Plan
from se_flax.analysis.study import STUDIES
from se_flax.data import TrainTransform
from se_flax.errors import UserError
from se_flax.training.config import (
    FIELDS,
    INTERVALS,
    assign,
    base_config,
    check_config,
    load_config,
    parse_args,
)
from se_flax.training.recipe import OF_OPTIMIZER, OF_STEP
from se_flax.training.run import run

pytestmark = pytest.mark.quick

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = 'configs/quickstart.py'
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('*.py'))


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_arguments_in_any_order():
    arguments = [
        ['--config=configs/imagenet.py:resnet50'],
        ['--workdir', 'runs/mine'],
        ['--config.batch_size=128'],
        ['--config.learning_rate', '2'],
        ['--config.model_fields.width=48'],
    ]
    seen = []
    for order in itertools.permutations(arguments):
        config, workdir, _ = parse_args(list(itertools.chain(*order)))
        seen.append((config.to_json(), workdir))
    assert len(set(seen)) == 1
    assert (config.model, config.batch_size, config.learning_rate) == ('resnet50', 128, 2.0)
    assert config.model_fields.width == 48
    assert workdir == pathlib.Path('runs/mine')
    assert config.is_locked


@pytest.mark.parametrize(
    ('argv', 'workdir'),
    [
        ([], 'runs/quickstart'),
        (['--config=configs/imagenet.py'], 'runs/imagenet'),
        (['--config', 'configs/imagenet.py:se_resnet101'], 'runs/imagenet-se_resnet101'),
    ],
)
def test_the_workdir_is_named_after_the_config(argv, workdir):
    assert parse_args(argv)[1] == pathlib.Path(workdir)


def test_the_last_of_two_values_counts():
    argv = ['--config.seed=1', '--config.seed=2']
    assert parse_args(argv)[0].seed == 2


@pytest.mark.parametrize(
    ('field', 'text', 'value'),
    [
        ('batch_size', '128', 128),
        ('learning_rate', '1', 1.0),
        ('learning_rate', '1e-3', 0.001),
        ('cache', 'true', True),
        ('cache', 'False', False),
        ('flip', '0', False),
        ('data', 'folder:/a=b', 'folder:/a=b'),
        ('data_dir', 'None', 'None'),
        ('drop_epochs', '30,60', (30, 60)),
        ('drop_epochs', '[2.5]', (2.5,)),
        ('drop_epochs', '30', (30,)),
        ('drop_epochs', '()', ()),
        ('num_steps', '20', 20),
        ('num_steps', 'None', None),
        ('log_every_epochs', '1', 1.0),
        ('eval_every_epochs', 'None', None),
    ],
)
def test_text_becomes_the_type_of_the_field(field, text, value):
    config = base_config()
    assign(config, field, text)
    assert config[field] == value
    assert type(config[field]) is type(value)


@pytest.mark.parametrize('what', INTERVALS)
@pytest.mark.parametrize(('unit', 'text', 'value'), [('steps', '5', 5), ('epochs', '5', 5.0)])
def test_an_interval_that_was_none_keeps_its_type(what, unit, text, value):
    config = base_config()
    assign(config, f'{what}_every_{unit}', 'None')
    assign(config, f'{what}_every_{unit}', text)
    assert type(config[f'{what}_every_{unit}']) is type(value)


@pytest.mark.parametrize(
    ('name', 'text', 'value'),
    [
        ('model_fields.se.reduction', '8', {'se': {'reduction': 8}}),
        ('model_fields.se', 'None', {'se': None}),
        ('model_fields.placement', 'pre', {'placement': 'pre'}),
        ('model_fields.se_stages', '(2, 3)', {'se_stages': (2, 3)}),
        ('model_fields.zero_init', 'True', {'zero_init': True}),
        ('model_fields.zero_init', 'false', {'zero_init': False}),
    ],
)
def test_fields_of_the_network_are_open(name, text, value):
    config = base_config()
    assign(config, name, text)
    assert config.model_fields.to_dict() == value


def test_fields_of_the_network_join_those_of_the_file():
    argv = ['--config.model_fields.se.reduction=8', '--config.model_fields.se.squeeze=max']
    config, *_ = parse_args(argv)
    assert config.model_fields.se.to_dict() == {'reduction': 8, 'squeeze': 'max'}
    assert config.model_fields.width == 32
    config, *_ = parse_args([*argv, '--config.model_fields.se=None'])
    assert config.model_fields.se is None


@pytest.mark.parametrize('file', FILES)
def test_a_config_says_how_it_is_run_and_is_valid(file):
    doc = ast.get_docstring(ast.parse(pathlib.Path(file).read_text()))
    commands = re.findall(r'^ +python train_main.py(.*)$', doc.replace('\\\n', ''), re.MULTILINE)
    assert commands
    for command in commands:
        argv = shlex.split(command)
        config, *_ = parse_args(argv)
        specs = [word.removeprefix('--config=') for word in argv if word.startswith('--config=')]
        spec = specs[0] if specs else QUICKSTART
        assert spec.partition(':')[0] == file
        want = load_config(spec)
        for name, _, value in (word.partition('=') for word in argv):
            if name.startswith('--config.'):
                assign(want, name.removeprefix('--config.'), value)
        assert config.to_json() == want.to_json()
        check_config(config, num_devices=1)
        assert set(config) == set(base_config())


@pytest.mark.parametrize('file', FILES)
def test_a_recipe_of_the_package_has_a_name(file, tmp_path, monkeypatch):
    by_path = load_config(file).to_json()
    monkeypatch.chdir(tmp_path)
    assert load_config(pathlib.Path(file).stem).to_json() == by_path
    config, workdir, _ = parse_args(['--config=imagenet:vgg16'])
    assert (config.model, workdir) == ('vgg16', pathlib.Path('runs/imagenet-vgg16'))


def test_every_field_is_used():
    sources = [ROOT / 'train_main.py', *(ROOT / 'se_flax').rglob('*.py')]
    sources = [path for path in sources if path.name != 'config.py']
    used = set(re.findall(r'\bconfig\.(\w+)', ' '.join(path.read_text() for path in sources)))
    named = {f'{what}_every_{unit}' for what in INTERVALS for unit in ('steps', 'epochs')}
    named |= {*OF_STEP, *OF_OPTIMIZER}
    named |= {'eval_resize', *(field.name for field in dataclasses.fields(TrainTransform))}
    assert set(FIELDS) - used - named == set()  # recipe_test checks those that are named


def test_help_lists_every_field(capsys):
    with pytest.raises(SystemExit):
        parse_args(['--help'])
    told = capsys.readouterr().out
    for name, field in FIELDS.items():
        assert f'  {name}={field.default}: ' in told
        assert re.fullmatch(r'[A-Z].*[^.]\.', field.help, re.IGNORECASE)
    assert '(share, at least 0, below 1)' in told


def test_the_defaults_are_valid():
    check_config(base_config(), num_devices=1)


MISTAKES = """
--confg=configs/quickstart.py
--config=configs/quickstrat.py
--config=configs
--config=nowhere/quickstart.py
--config=quickstrat
--config=imagenett:vgg16
--config.tracker=wandbb
--config=configs/quickstart.py:se_resnet50
--config=train_main.py
quickstart
--batch_size=64
--config.batchsize=64
--config.optimizer.momentum=0.9
--config.model_field.width=3
--config.batch_size
--config.batch_size=64.5
--config.batch_size=None
--config.learning_rate=fast
--config.cache=maybe
--config.drop_epochs=30;60
--config.drop_epochs=
--config.drop_epochs=1e999
--config.drop_epochs=-1
--config.num_steps=1.5
--config.model_fields=3
--config.model_fields.width=wide
--config.model_fields.width.stem=3
--config.schedule=cosin
--config.dtype=float16
--config.mean=1,2
--config.std=1,2,0
--config.fill=0
--config.fill=300,0,0
--config.crop_area=0.5
--config.batch_size=0
--config.batch_size=60
--config.batch_size=72
--config.eval_batch_size=100
--config.image_size=0
--config.num_epochs=0
--config.num_epochs=inf
--config.learning_rate=0
--config.learning_rate=nan
--config.bn_group_size=-1
--config.weight_decay=-1
--config.momentum=1
--config.label_smoothing=1
--config.warmup=1
--config.warmup=-0.1
--config.seed=-1
--config.seed=4294967296
--config.keep_checkpoints=1
--config.num_steps=0
--config.eval_every_steps=0
--config.log_every_epochs=0
--config.num_threads=-1
--config.num_workers=-1
--config.sampling=class-aware
--config.base_batch_size=-1
--config.accumulate=0
--config.accumulate=3
--config=configs/imagenet.py --config.accumulate=3
--config=configs/imagenet.py --config.accumulate=4 --config.bn_group_size=0
--config=configs/imagenet.py --config.accumulate=4 --config.bn_group_size=1024
--config.warmup_factor=-1
--config.drop_patience=0
--config.max_drops=-1
--config.freeze_bn_epochs=-1
--config.ema=1
--config.ra_operations=-1
--config.ra_magnitude=11
--config.ra_std=-0.5
--config.color_jitter=0.4
--config.color_jitter=0.4,0.4,-1
--config.erasing=1.5
--config.erasing_mode=pixels
--config.repeats=0
--config.mixup=-1
--config.mixup_switch_prob=2
--config.mixup=0.2 --config.bn_group_size=1
--config.mix_up=0.2
--config=configs/senet154.py:256
--config=configs/cifar.py:se_preact_resnet101
"""


def test_every_mistake_has_its_message(golden):
    """On eight devices; the text is what a user reads after `error: `."""

    def read(command):
        config, *_ = parse_args(shlex.split(command))
        check_config(config, num_devices=8)

    lines = []
    for command in MISTAKES.split('\n')[1:-1]:
        with pytest.raises(UserError) as error:
            read(command)
        lines += [command, f'    {error.value}']
    golden('training/config_errors.txt', '\n'.join(lines) + '\n')


def test_none_in_a_file_is_refused():
    config = load_config(QUICKSTART)
    config.batch_size = None
    with pytest.raises(UserError, match='batch_size=None'):
        check_config(config, num_devices=1)


FILE = """
from se_flax.training.config import base_config

def get_config(model='se_resnet8_cifar'):
    c = base_config()
    c.model, c.data = model, 'fashion_mnist_mini'
    {}
    return c
"""


@pytest.mark.parametrize(
    ('line', 'told'),
    [
        ('c.learning_rat = 5', ["unknown config field 'learning_rat': did you mean learning_rate"]),
        ("c.optimizer = 'adam'", ["unknown optimizer 'adam': did you mean adamw or lamb?"]),
        (
            'c.model_fields.widht = 8',
            ["unknown field of se_resnet8_cifar 'widht': did you mean wi"],
        ),
        ("c.model_fields.width = 'big'", ["width='big' must be a number"]),
        ("c.model_fields.name = 'x'", ['se_resnet8_cifar cannot have model_fields ']),
        ('c.optimiser.momentum = 0.9', ["{file}:7: AttributeError: ''optimiser' Did you mean"]),
        ("c.optimizer, c.nesterov = 'lamb', True", ["nesterov=True is a field of optimizer='sgd'"]),
        ('c.betas = 0.9, 1.0', ['betas=1.0 must be below 1']),
        ('c.betas = (0.9,)', ['betas=(0.9,) must have 2 numbers']),
        ('c.epsilon = 0.0', ['epsilon=0.0 must be above 0']),
        ('c.clip_norm = -1.0', ['clip_norm=-1.0 must be at least 0']),
        ("c.batch_size = 'many'", ['{file}:7: TypeError: ', 'batch_size']),
        ('del c.momentum', ['config has no momentum; it must start from base_config()']),
        ('del c.mean', ['config has no mean; it must start from base_config()']),
        ('c.seed, c.train_examples = -1, 50', ['seed=-1 must be at least 0']),
        ('c.num_steps = c.seed = None', ['seed=None: it needs a value']),
        ("c.drop_epochs = ('30', 60)", ["drop_epochs has type tuple, got ('30', 60)"]),
        ('import numpy; c.mean = tuple(numpy.zeros(3, "float32"))', ['mean has type tuple, got (']),
        ('c.num_threads = True', ['num_threads has type int, got True']),
        ('c = c.to_dict()', ['get_config() of {file} returns dict; a config is a ConfigDict']),
        ('return', ['get_config() of {file} returns NoneType; a config is']),
        ('if c', ["{file}:7: SyntaxError: expected ':'"]),
        ('import no_such_module', ['{file}:7: ModuleNotFoundError: No module']),
        ('c.mean = None', ['mean=None needs a weights file, --config.init_from=FILE']),
        (
            "c.learning_rat = 5; c.schedule = 'cosin'; c.batch_size = 0; c.model_fields.widht = 8",
            ['4 mistakes:\n  ', 'learning_rate', 'cosine', 'batch_size=0 must', 'widht'],
        ),
    ],
)
def test_a_mistake_in_a_file_is_told_in_a_line(line, told, tmp_path):
    """The same for a run, a study and a caller in Python."""
    file = tmp_path / 'mine.py'
    file.write_text(FILE.format(line))

    def run_from_python():
        return run(load_config(str(file)), tmp_path / 'run')

    def study():
        ablate.check(Plan(STUDIES['squeeze'], str(file), (), 1, tmp_path))

    for start in (lambda: parse_args([f'--config={file}']), run_from_python, study):
        with pytest.raises(UserError) as error:
            start()
        message = str(error.value)
        assert all(text.format(file=file) in message for text in told), message
        lines = message.splitlines()
        assert lines[0].startswith(f'{len(lines) - 1} mistakes') or len(lines) == 1
        assert not (tmp_path / 'run').exists()


def test_a_syntax_error_of_an_import_has_its_own_place(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'broken_import.py').write_text(39 * '\n' + 'if x\n')
    file = tmp_path / 'mine.py'
    file.write_text(FILE.format('import broken_import'))
    told = f"{file}:7: SyntaxError: expected ':' (broken_import.py, line 40)"
    with pytest.raises(UserError, match=f'^{re.escape(told)}$'):
        load_config(str(file))


@pytest.mark.parametrize(
    ('model', 'fields'),
    [
        ('timm_seresnet50', {'zero_init': 'false', 'se.excite': 'tanh'}),
        ('regnet_y_200mf', {'stage_sizes': '(1, 1)', 'widths': '(24, 56)'}),
    ],
)
def test_fields_that_are_possible_only_together(model, fields):
    words = [f'--config.model_fields.{name}={text}' for name, text in fields.items()]
    config, *_ = parse_args([f'--config=imagenet:{model}', *words])
    check_config(config, num_devices=8)


def test_assignments_and_the_file_are_told_together(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(FILE.format('c.learning_rat = 5'))
    argv = [f'--config={file}', '--config.momentun=1', '--config.seed=x', '--config.crop=pads']
    with pytest.raises(UserError) as error:
        parse_args(argv)
    told = str(error.value).splitlines()
    assert told[0] == '4 mistakes:'
    for word in ('momentum', "seed has type int, got 'x'", 'learning_rate', 'did you mean pad'):
        assert sum(word in line for line in told) == 1


@pytest.mark.parametrize('argument', [None, 3, {'seed': 1}])
def test_what_is_no_config_is_refused(argument, tmp_path):
    with pytest.raises(UserError, match='; a config is a ConfigDict that starts from base_config'):
        run(argument, tmp_path / 'run')


def test_names_come_before_data(tmp_path):
    argv = ['--config=configs/imagenet.py:se_resnet5', f'--config.data_dir={tmp_path}']
    with pytest.raises(UserError, match=r"^unknown model 'se_resnet5': did you mean se_resnet50"):
        parse_args(argv)
    config = load_config('configs/imagenet.py')
    config.update({'data_dir': str(tmp_path), 'model_fields': {'placement': 'behind'}})
    with pytest.raises(UserError) as error:
        run(config, tmp_path / 'run')
    first, model, data = str(error.value).splitlines()
    assert first == '2 mistakes:'
    assert "'behind'" in model
    assert "data set 'imagenet2012' is not in" in data
