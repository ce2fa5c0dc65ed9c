"""No network goes without a comparison."""

import pathlib

import pytest

from se_flax.models import list_models

TESTS = [path.read_text() for path in pathlib.Path(__file__).parent.glob('*_test.py')]


@pytest.mark.parametrize('name', list_models())
def test_a_network_is_compared_here(name):
    assert any(f"'{name}'" in text for text in TESTS)
