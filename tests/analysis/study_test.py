"""The studies: what they vary, and the paper's figures in them."""

import ast

import pytest

from se_flax.analysis.study import PLAIN, STUDIES, grid, networks
from se_flax.errors import UserError
from se_flax.models import create_model, model_info
from se_flax.models.complexity import count

pytestmark = pytest.mark.quick


@pytest.mark.parametrize('study', STUDIES.values(), ids=STUDIES)
def test_each_has_its_baseline_once_and_the_papers_two_common_cells(study):
    names = [cell.name for cell in study.cells]
    assert len(set(names)) == len(names)
    assert {cell.baseline for cell in study.cells} <= set(names)
    for cell in study.cells:
        if cell.equal or 'excite_bias' in str(cell.fields) or study is STUDIES['pieces']:
            assert not cell.paper
        elif cell.model == PLAIN:
            assert cell.paper == (23.30, 6.55)
        elif not cell.fields:
            assert cell.paper == (22.28, 6.03)
        else:
            top1, top5 = cell.paper
            assert 22.2 <= top1 < 23.5
            assert 5.9 < top5 < 7


def fields(cell):
    """What a cell gives `create_model`."""
    given = {'se': {'use_bias': False}}
    for name, text in cell.fields:
        name = name.removeprefix('model_fields.')
        if name.startswith('se.'):
            value = int(text) if text.isdigit() else None if text == 'None' else text
            given['se'][name.removeprefix('se.')] = value
        else:
            given[name] = ast.literal_eval(text) if text.startswith('(') else text
    return given


# Fact sheet 1.3: exact, of ResNet-50 without SE biases.
@pytest.mark.parametrize(
    ('study', 'name', 'params'),
    [
        ('reduction', '2', 45_676_584),
        ('reduction', '32', 26_814_504),
        ('stages', 'stage 2', 25_581_608),
        ('stages', 'stage 4', 26_343_464),
        ('stages', 'all', 28_071_976),
        ('placement', '3x3', 25_714_216),
    ],
)
def test_cells_make_the_papers_networks(study, name, params):
    [cell] = [cell for cell in STUDIES[study].cells if cell.name == name]
    assert count(create_model('se_resnet50', **fields(cell)), 32).params == params


def test_networks_are_pairs_with_the_papers_errors():
    study = networks(['resnet50', 'se_vgg16', 'se_resnet50'])
    assert [cell.name for cell in study.cells] == ['resnet50', 'se_resnet50', 'vgg16', 'se_vgg16']
    assert [cell.baseline for cell in study.cells] == ['resnet50', 'resnet50', 'vgg16', 'vgg16']
    paper = model_info('se_vgg16').paper
    assert study.cells[3].paper == (paper.top1_error, paper.top5_error) == (25.22, 7.70)


def test_networks_are_pairs_for_each_value_of_a_field():
    study = networks(['resnet8_cifar'], ['train_examples=20,40'])
    assert [(cell.name, cell.baseline) for cell in study.cells] == [
        (f'{name}resnet8_cifar train_examples={n}', f'resnet8_cifar train_examples={n}')
        for n in (20, 40)
        for name in ('', 'se_')
    ]
    assert study.cells[1].fields == (('train_examples', '20'),)


def test_a_grid_is_all_combinations():
    study = grid(['model_fields.se.reduction=4,8', 'config.model_fields.se_stages=(2,3),(4,)'])
    assert [dict(cell.fields) for cell in study.cells] == [
        {'model_fields.se.reduction': r, 'model_fields.se_stages': s}
        for r in ('4', '8')
        for s in ('(2,3)', '(4,)')
    ]
    assert {cell.baseline for cell in study.cells} == {'se.reduction=4 se_stages=(2,3)'}


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda: networks([]), '--networks resnet50'),
        (lambda: networks(['resnet5']), 'did you mean resnet50'),
        (lambda: networks(['timm_senet154']), "unknown network with a twin 'timm_senet154'"),
        (lambda: grid([]), '--vary'),
        (lambda: grid(['reduction']), 'FIELD=VALUE'),
    ],
)
def test_what_no_study_can_be_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
