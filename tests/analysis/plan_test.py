"""Plans: what is run, where, and by which of several machines."""

import itertools
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from se_flax.analysis.plan import Plan, distinct, load_plan, save_plan, shard_of
from se_flax.analysis.study import STUDIES, grid, networks
from se_flax.errors import MissingError, UserError
from se_flax.models.complexity import count
from se_flax.training import workdir
from se_flax.training.recipe import make_model

pytestmark = pytest.mark.quick

QUICKSTART = str(pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py')


def plan_of(study, runs, *assignments, seeds=2):
    return Plan(study, QUICKSTART, assignments, seeds, runs)


@pytest.mark.parametrize(
    ('study', 'name', 'fields'),
    [
        ('reduction', '2', {'se': {'reduction': 2}}),
        ('reduction', '32', {'se': {'reduction': 32}}),
        ('stages', 'stage 2', {'se_stages': (2,)}),
        ('stages', 'stage 4', {'se_stages': (4,)}),
        ('stages', 'all', {}),
        ('placement', '3x3', {'placement': 'inside_3x3'}),
    ],
)
def test_cells_make_the_papers_networks(study, name, fields, tmp_path):
    """Whose parameters are counted in tests/models/resnet_test.py."""
    plan = plan_of(STUDIES[study], tmp_path)
    [cell] = [cell for cell in plan.study.cells if cell.name == name]
    of_all = {'width': 32, 'stem_strides': 2}
    assert plan.cell_config(cell).model_fields.to_dict() == of_all | fields


def test_a_plain_cell_drops_the_fields_of_se(tmp_path):
    told = ('model_fields.se.reduction', '8'), ('model_fields.placement', 'pre')
    plan = plan_of(STUDIES['reduction'], tmp_path, *told)
    plain, two, *_ = (plan.cell_config(cell) for cell in plan.study.cells)
    assert plain.model == 'resnet8_cifar'
    assert plain.model_fields.to_dict().keys() == {'width', 'stem_strides'}
    assert two.model == 'se_resnet8_cifar'
    assert two.model_fields.se.reduction == 2
    assert two.model_fields.placement == 'pre'


def test_a_cell_has_the_value_of_its_name_whatever_the_network_has(tmp_path):
    plan = Plan(STUDIES['reduction'], 'configs/efficientnet.py', (), 1, tmp_path)
    configs = {cell.name: plan.cell_config(cell) for cell in plan.study.cells}
    assert configs['16'].model_fields.se.reduction == 16
    assert 'se' not in configs['4'].model_fields  # the network's own
    placement = plan._replace(study=STUDIES['placement'])
    assert placement.cell_config(placement.study.cells[1]).model_fields.placement == 'standard'
    grid_of = plan._replace(config=QUICKSTART, study=grid(['model_fields.se.reduction=16,8']))
    plain = grid_of._replace(assignments=(('model', 'resnet8_cifar'),))
    assert plain.cell_config(plain.study.cells[0]).model_fields.se.reduction == 16
    assert 'se' not in grid_of.cell_config(grid_of.study.cells[0]).model_fields


def test_tasks_are_ordered_by_seed_and_start_from_the_configs(tmp_path):
    plan = plan_of(STUDIES['squeeze'], tmp_path, ('seed', '5'))
    tasks = plan.tasks()
    assert [(t.cell.name, t.seed) for t in tasks] == [
        (name, seed) for seed in (5, 6) for name in ('average', 'max')
    ]
    assert [t.config.seed for t in tasks] == [5, 5, 6, 6]
    assert len({t.workdir for t in tasks}) == 4


def test_equal_runs_of_two_studies_have_one_place(tmp_path):
    reduction, stages, both = (
        {task.cell.name: task.workdir for task in plan_of(study, tmp_path).tasks()}
        for study in (STUDIES['reduction'], STUDIES['stages'], networks(['resnet8_cifar']))
    )
    assert reduction['16'] == stages['all'] == both['se_resnet8_cifar']
    assert reduction['original'] == stages['original'] == both['resnet8_cifar']
    assert reduction['8'] != stages['stage 2']
    batches = networks(['resnet8_cifar'], ['batch_size=32,64'])  # 64 is the quick start's own
    of_batch = {task.cell.name: task.workdir for task in plan_of(batches, tmp_path).tasks()}
    assert of_batch['resnet8_cifar batch_size=64'] == both['resnet8_cifar']
    assert of_batch['resnet8_cifar batch_size=32'] != both['resnet8_cifar']


def test_a_network_without_se_gets_none_by_a_field_of_se(tmp_path):
    axes = ['model_fields.se.reduction=8,16', 'batch_size=32']
    plan = plan_of(networks(['resnet8_cifar'], axes), tmp_path)
    plain, *with_se = plan.study.cells
    assert plain.name == 'resnet8_cifar batch_size=32'
    assert make_model(plan.cell_config(plain), 10).se is None
    names = [f'se_resnet8_cifar se.reduction={r} batch_size=32' for r in (8, 16)]
    assert [(cell.name, cell.baseline) for cell in with_se] == [(n, plain.name) for n in names]
    assert plan.cell_config(with_se[0]).model_fields.se.reduction == 8


def test_two_configs_never_have_one_workdir(tmp_path):
    plan = plan_of(grid(['data=folder:/a/b,folder:/a_b']), tmp_path)
    with pytest.raises(UserError, match="'data=folder:/a_b' and another one would have the same"):
        plan.tasks()


def test_two_shards_never_have_one_workdir(tmp_path):
    tasks = plan_of(STUDIES['cost'], tmp_path).tasks()
    assert len({task.workdir for task in tasks}) < len(tasks)
    shards = [shard_of(distinct(tasks), f'{i}/4', {}) for i in range(4)]
    workdirs = [task.workdir for task in itertools.chain(*shards)]
    assert sorted(workdirs) == sorted({task.workdir for task in tasks})


def test_saved_it_is_what_it_was_and_can_have_more_seeds(tmp_path):
    study = grid(['model_fields.se_stages=(2,),(3,)'])
    plan = plan_of(study, tmp_path / 'runs', ('num_epochs', '3'), ('num_threads', '2'))
    told = plan._replace(assignments=plan.assignments[:1])  # the other is the machine's
    assert save_plan(tmp_path, plan) == plan
    assert load_plan(tmp_path) == told
    assert save_plan(tmp_path, plan._replace(seeds=5)).seeds == 5
    assert save_plan(tmp_path, plan).seeds == 5
    assert load_plan(tmp_path).seeds == 5
    moved = tmp_path.rename(tmp_path.with_name('moved'))
    assert load_plan(moved).runs == moved / 'runs'


def test_another_study_in_its_folder_is_refused(tmp_path):
    save_plan(tmp_path, plan_of(STUDIES['squeeze'], tmp_path / 'runs'))
    for other in (
        plan_of(STUDIES['stages'], tmp_path / 'runs'),
        plan_of(STUDIES['squeeze'], tmp_path / 'runs', ('num_epochs', '3')),
        plan_of(STUDIES['squeeze'], tmp_path / 'other'),
    ):
        with pytest.raises(UserError, match='plan of another study.*another --out'):
            save_plan(tmp_path, other)
    with pytest.raises(MissingError, match=r'no plan\.json'):
        load_plan(tmp_path / 'runs')
    (tmp_path / 'plan.json').write_text('{"title": "of another program"}')
    with pytest.raises(UserError, match=r'plan\.json is not the plan of a study'):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ('what', 'told'),
    [('params', ()), ('params', (('model_fields.se.reduction', '2'),)), ('macs', ())],
)
def test_no_other_width_is_nearer_to_the_cost_of_se(what, told, tmp_path):
    plan = plan_of(STUDIES['cost'], tmp_path, ('model_fields.stage_sizes', '(1, 1)'), *told)
    with_se, plain, *cells = plan.study.cells
    [cell] = [cell for cell in cells if cell.equal == what]
    models = [make_model(plan.cell_config(cell), 10) for cell in (with_se, plain, cell)]
    target, least, got = (getattr(count(model, 28), what) for model in models)
    wide = models[-1]
    assert wide.se is None
    assert wide.width >= models[1].width
    for width in (wide.width - 0.5, wide.width + 0.5):  # by a channel of the last stage
        other = getattr(count(wide.clone(width=width), 28), what)
        assert abs(other - target) >= abs(got - target)
    folders = {task.cell: task.workdir for task in plan.tasks()}
    assert (folders[cell] == folders[plain]) == (got == least)


def test_an_equal_cost_needs_the_data_only_until_there_is_a_run(tmp_path):
    here = plan_of(STUDIES['cost'], tmp_path)
    tasks = here.tasks()
    away = here._replace(assignments=(('data', 'folder:/away'),))
    with pytest.raises(UserError, match='/away'):
        away.tasks()
    names = list(map(str, range(10)))
    saved = workdir.saved_config(away.cell_config(here.study.cells[0]), names)
    workdir.claim(tasks[0].workdir, saved, {})
    assert [task.workdir for task in away.tasks()] == [task.workdir for task in tasks]


def test_a_network_of_one_width_has_no_equal(tmp_path):
    plan = plan_of(STUDIES['cost'], tmp_path, ('data', 'synthetic'))
    plan = plan._replace(config='mobile:se_shufflenet')
    with pytest.raises(UserError, match='ShuffleNet has no width to choose for equal params'):
        plan.tasks()


def test_the_plain_network_is_the_twin_whatever_its_name(tmp_path):
    plan = Plan(STUDIES['nosqueeze'], 'mobile:efficientnet_b0', (), 1, tmp_path)
    plain, none, with_se = (plan.cell_config(cell) for cell in plan.study.cells)
    assert (plain.model, with_se.model) == ('efficientnet_b0_no_se', 'efficientnet_b0')
    assert none.model_fields.se.squeeze is None
    fields = ('model_fields.se_stages', '(3,)'), ('model_fields.dropout', '0.1')
    plan = Plan(networks(['efficientnet_b0']), 'mobile:efficientnet_b0', fields, 1, tmp_path)
    plain, with_se = (plan.cell_config(cell).model_fields for cell in plan.study.cells)
    assert plain.to_dict() == {'dropout': 0.1}
    assert with_se.to_dict() == {'dropout': 0.1, 'se_stages': (3,)}


SLURM = {
    'SLURM_ARRAY_TASK_MIN': '3',
    'SLURM_ARRAY_TASK_MAX': '11',
    'SLURM_ARRAY_TASK_STEP': '4',
    'SLURM_ARRAY_TASK_COUNT': '3',
}


@given(st.integers(0, 40), st.integers(1, 9))
def test_shards_are_a_partition(tasks, count):
    shards = [shard_of(range(tasks), f'{i}/{count}', {}) for i in range(count)]
    assert sorted(itertools.chain(*shards)) == list(range(tasks))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(
    ('text', 'environ', 'expected'),
    [
        (None, {}, [0, 1, 2, 3, 4, 5, 6]),
        ('1/3', {}, [1, 4]),
        ('/3', {'JOB_COMPLETION_INDEX': '2'}, [2, 5]),
        (None, {'SLURM_ARRAY_TASK_ID': '7', **SLURM}, [1, 4]),
        ('0/7', {'SLURM_ARRAY_TASK_ID': '7', **SLURM}, [0]),
    ],
)
def test_a_scheduler_says_which_shard(text, environ, expected):
    assert shard_of(range(7), text, environ) == expected


@pytest.mark.parametrize(
    ('text', 'environ', 'words'),
    [
        ('3/3', {}, '--shard 3/3: .*from 0 to N - 1'),
        ('1', {}, '--shard 1: '),
        ('/3', {}, '--shard /3: '),
        (None, {'JOB_COMPLETION_INDEX': '0'}, '--shard /N'),
        (None, {'SLURM_ARRAY_TASK_ID': '3', **SLURM, 'SLURM_ARRAY_TASK_COUNT': '2'}, 'gaps'),
    ],
)
def test_no_shard_of_any(text, environ, words):
    with pytest.raises(UserError, match=words):
        shard_of(range(7), text, environ)
