"""The file of predictions, read as others read it."""

import csv
import json

import numpy as np
import pytest

from se_flax.data import Dataset
from se_flax.errors import MissingError, UserError
from se_flax.evaluation.predictions import Predictions

DATASET = Dataset('set', 'eval', ('a', 'b, c', 'd "e"'))
RESULTS = {
    'label': np.array([1, 0, 2], np.int32),
    'mask': np.array([True, False, True]),
    'top': np.array([[1, 0, 2], [0, 1, 2], [0, 2, 1]], np.int32),
    'probability': np.array([[0.75, 0.25, 0], [1, 0, 0], [0.5, 0.3, 0.2]], np.float32),
}


def write(path):
    predictions = Predictions(path)
    for first in (0, 3):
        predictions.add(DATASET, first, RESULTS)
    assert not path.exists()
    predictions.write()
    assert list(path.parent.iterdir()) == [path]


def test_csv(tmp_path):
    write(tmp_path / 'p.csv')
    with (tmp_path / 'p.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['index'] for row in rows] == ['0', '2', '3', '5']
    assert rows[3] == {
        **{'index': '5', 'key': 'set/eval/5', 'label': '2', 'label_name': 'd "e"'},
        **{'class_1': '0', 'name_1': 'a', 'probability_1': '0.5'},
        **{'class_2': '2', 'name_2': 'd "e"', 'probability_2': '0.3'},
        **{'class_3': '1', 'name_3': 'b, c', 'probability_3': '0.2'},
    }


def test_jsonl(tmp_path):
    write(tmp_path / 'p.jsonl')
    rows = [json.loads(line) for line in (tmp_path / 'p.jsonl').read_text().splitlines()]
    assert [row['index'] for row in rows] == [0, 2, 3, 5]
    assert rows[0] == {
        **{'index': 0, 'key': 'set/eval/0', 'label': 1, 'label_name': 'b, c'},
        'top': [
            {'class': 1, 'name': 'b, c', 'probability': 0.75},
            {'class': 0, 'name': 'a', 'probability': 0.25},
            {'class': 2, 'name': 'd "e"', 'probability': 0.0},
        ],
    }


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"unknown kind of predictions file '.json': did you mean"):
        Predictions(tmp_path / 'p.json')
    with pytest.raises(MissingError, match=r'cannot write .*/no/p.csv: no folder .*/no'):
        Predictions(tmp_path / 'no' / 'p.csv')
