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
    return runpy.run_path(str(SCRIPT))


def test_collectives_are_found_whatever_they_are_of(aot):
    text = """
      %all-reduce.1 = (f32[64,3]{1,0:T(8,128)}, bf16[2]{0}) all-reduce(%a, %b), to_apply=%add
      %start = f32[10]{0} all-reduce-start(%c), replica_groups={{0,1}}
      %done = f32[10]{0} all-reduce-done(%start)
      %gather = u8[8]{0} all-gather(%d), dimensions={0}
      %x = f32[] get-tuple-element(%all-reduce.1), index=0
    """
    assert aot['collectives'](text) == [
        ('all-reduce', 64 * 3 * 4 + 2 * 2),
        ('all-reduce', 40),
        ('all-gather', 8),
    ]


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
