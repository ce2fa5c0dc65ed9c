"""benchmarks/aot.py: its arithmetic, and where libtpu is installed a small step compiled by it."""

import importlib.util
import json
import os
import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from se_flax.models import create_model
from se_flax.models.complexity import count

SCRIPT = pathlib.Path(__file__).parents[1] / 'benchmarks' / 'aot.py'


@pytest.fixture(scope='module')
def aot():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)  # it imports its neighbour
        return runpy.run_path(str(SCRIPT))


def test_collectives_are_found_whatever_they_are_of(aot):
    text = """
ENTRY %main (a: f32[]) -> f32[] {
      %all-reduce.1 = (f32[64,3]{1,0:T(8,128)}, bf16[2]{0}) all-reduce(%a, %b)
      %start = f32[10]{0} all-reduce-start(%c), replica_groups={{0,1}}
      %done = f32[10]{0} all-reduce-done(%start)
      %gather = u8[8]{0} all-gather(%d), dimensions={0}
      %x = f32[] get-tuple-element(%all-reduce.1), index=0
}
"""
    assert aot['collectives'](text) == [
        ('all-reduce', 64 * 3 * 4 + 2 * 2),
        ('all-reduce', 40),
        ('all-gather', 8),
    ]


def test_of_two_branches_the_one_that_moves_most_counts(aot):
    text = """
%less (a: f32[]) -> f32[] {
  %r = f32[2]{0} all-reduce(%a), to_apply=%add
  %s = f32[2]{0} all-reduce(%a), to_apply=%add
}

%inner (a: f32[]) -> f32[] {
  %r = f32[8]{0} all-reduce(%a), to_apply=%add
}

%more (a: f32[]) -> f32[] {
  %f = f32[8]{0} fusion(%a), kind=kCustom, calls=%inner
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main.1_spmd (a: f32[]) -> f32[] {
  %c = f32[8]{0} conditional(%p, %a, %a), branch_computations={%less, %more}
  %r = f32[3]{0} all-reduce(%c), to_apply=%add
}
"""
    assert sorted(aot['collectives'](text)) == [('all-reduce', 12), ('all-reduce', 32)]


@pytest.mark.parametrize(
    ('chips', 'links'),
    # Two links of four on the square of 2 x 2, where a line of 2 is no ring; all on the whole pod.
    [(4, 2 * 3 / 4 * 1e9 / 100e9), (256, 2 * 255 / 256 * 1e9 / 200e9)],
)
def test_bounds(aot, chips, links):
    row = {'chip': 'v5e', 'chips': chips, 'flops': 197e9, 'bytes_accessed': 819e6}
    found = aot['bounds'](row | {'collective_bytes': 1e9})
    assert found == pytest.approx({'compute': 1e-3, 'memory': 1e-3, 'links': links})


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='needs the tpu extra')
def test_a_small_step_reduces_its_gradient_and_nothing_else():
    name, images = 'se_resnet8_cifar', 32
    command = [sys.executable, SCRIPT, '--print', f'--model={name}', f'--images={images}']
    done = subprocess.run(command, text=True, capture_output=True, check=True, env=os.environ)
    row = json.loads(done.stdout.splitlines()[-1])
    model = create_model(name, 1000)
    image = jnp.zeros((1, 224, 224, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    params, stats = (
        sum(leaf.size for leaf in jax.tree.leaves(shapes[kind]))
        for kind in ('params', 'batch_stats')
    )
    # The convolutions' gradients are summed in bfloat16, the others and the statistics in float32.
    assert 2 * params <= row['collective_bytes'] <= 4 * (params + stats) + 100
    assert row['other_collectives'] == 0
    # Parameters, momentum and statistics, padded to tiles, are updated in place.
    assert row['state_bytes'] >= 4 * (2 * params + stats)
    forward = 2 * count(model, 224).macs * images
    assert 2.5 * forward < row['flops'] < 3.5 * forward
