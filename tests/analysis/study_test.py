"""The studies: what they vary, and the paper's figures in them."""

import pytest

from se_flax.analysis.study import PLAIN, STUDIES, grid, networks
from se_flax.models import model_info

pytestmark = pytest.mark.quick


@pytest.mark.parametrize('study', STUDIES.values(), ids=STUDIES)
def test_each_has_its_baseline_once_and_the_papers_two_common_cells(study):
    names = [cell.name for cell in study.cells]
    assert len(set(names)) == len(names)
    assert {cell.baseline for cell in study.cells} <= set(names)
    for cell in study.cells:
        if cell.equal or cell.name in ('bias 2', 'bias 4') or study is STUDIES['pieces']:
            assert not cell.paper
        elif cell.model == PLAIN:
            assert cell.paper == (23.30, 6.55)
        elif cell.name in ('16', 'average', 'sigmoid', 'all', 'standard', 'SE', 'bias 0'):
            assert cell.paper == (22.28, 6.03)
        else:
            top1, top5 = cell.paper
            assert 22.2 <= top1 < 23.5
            assert 5.9 < top5 < 7


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
    study = grid(['model_fields.se.reduction=4,8,4', 'config.model_fields.se_stages=(2,3),(4,)'])
    assert [dict(cell.fields) for cell in study.cells] == [
        {'model_fields.se.reduction': r, 'model_fields.se_stages': s}
        for r in ('4', '8')
        for s in ('(2,3)', '(4,)')
    ]
    assert {cell.baseline for cell in study.cells} == {'se.reduction=4 se_stages=(2,3)'}
