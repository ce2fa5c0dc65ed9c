"""benchmarks/aot_gpu.py: how it reads a module, and where CUDA's compiler is, a small step."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / 'benchmarks'
MODULE = """HloModule jit_train_step, is_scheduled=true

FileNames
1 "/somewhere/python/optax/update.py"
2 "/somewhere/se_flax/nn/conv.py"

FunctionNames
1 "convolve"

FileLocations
1 {file_name_id=2 function_name_id=1 line=92 end_line=92 column=1 end_column=2}
2 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%fused (p: f32[2]) -> f32[2] {
  ROOT %inside = f32[1000]{0} add(%p, %p)
}

%little (y: f32[3]) -> f32[3] {
  %y = f32[3]{0} parameter(0)
  ROOT %copy.7 = f32[3]{0} copy(%y)
}

%much (z: f32[5]) -> f32[3] {
  %z = f32[5]{0} parameter(0)
  %copy.8 = f32[5]{0} copy(%z)
  ROOT %loop_slice_fusion = f32[3]{0} fusion(%copy.8), kind=kLoop, calls=%fused
}

ENTRY %main (x: f32[8,4,4,2]) -> (f32[8,4,4,2]) {
  %x = f32[8,4,4,2]{3,2,1,0} parameter(0)
  %scalar = f32[] constant(2)
  %loop_add_fusion = f32[8,4,4,2]{3,2,1,0} fusion(%x, /*index=1*/%scalar), kind=kLoop, calls=%fused
  %sums = (f32[2]{0}, pred[2]{0}) fusion(%loop_add_fusion), kind=kInput, calls=%fused, metadata={op_name="jit(train_step)/transpose(jvp(ResNet))/norm/reduce_sum;x" stack_frame_id=2}
  %get-tuple-element.1 = f32[2]{0} get-tuple-element(%sums), index=0
  %cudnn-conv.1 = (bf16[8,4,4,2]{3,2,1,0}, u8[0]{0}) custom-call(%x, %get-tuple-element.1), custom_call_target="__cudnn$convForward", metadata={op_name="jit(train_step)/jvp(ResNet)/conv1/conv" stack_frame_id=1}
  %input_transpose_fusion.3 = bf16[2,2]{1,0} fusion(%scalar), kind=kInput, calls=%fused
  %either = f32[3]{0} conditional(%scalar, %x, %x), true_computation=%little, false_computation=%much, metadata={op_name="cond"}
  %one = f32[3]{0} conditional(%scalar, %x, %x), branch_computations={%little, %little}
  ROOT %copy.2 = f32[8,4,4,2]{3,2,1,0} copy(%x)
}
"""  # noqa: E501


@pytest.fixture(scope='module')
def aot_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # it imports its neighbours
        yield importlib.import_module('aot_gpu')


def test_kernels_are_those_of_the_entry_with_what_they_move(aot_gpu):
    map_bytes = 4 * 8 * 4 * 4 * 2
    found = aot_gpu.kernels(MODULE)
    assert [(kernel.kind, kernel.bytes) for kernel in found] == [
        ('loop', 2 * map_bytes + 4),
        ('reduction', map_bytes + 4 * 2 + 2),
        ('convolution', map_bytes / 2 + map_bytes + 4 * 2),
        ('transpose', 2 * 4 + 4),
        ('copy', 2 * 4 * 5),
        ('loop', 4 * 5 + 4 * 3),
        ('copy', 2 * 4 * 3),
        ('copy', 2 * map_bytes),
    ]
    assert [kernel.source for kernel in found] == ['', 'nn/conv.py:92', 'nn/conv.py:92', *[''] * 5]
    assert [aot_gpu._short(kernel.origin) for kernel in found][1:3] == [
        'backward of norm/reduce_sum',
        'conv1/conv',
    ]
    assert [aot_gpu.is_float32_map(kernel, 8) for kernel in found] == [True, *[False] * 6, True]


needs_cuda_aot = pytest.mark.skipif(
    not importlib.util.find_spec('jax_cuda13_plugin'), reason='needs the cuda-aot extra'
)


@needs_cuda_aot
def test_a_small_step_moves_no_more_than_it_did():
    rows = json.loads((BENCHMARKS / 'results' / 'aot_gpu.json').read_text())['rows']
    [known] = [row for row in rows if row['model'] == 'se_resnet8_cifar']
    script = str(BENCHMARKS / 'aot_gpu.py')
    cell = [f'--model={known["model"]}', f'--images={known["images"]}', '--print']
    done = subprocess.run([sys.executable, script, *cell], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row['bytes'] <= 1.02 * known['bytes']
    assert row['kernels'] <= 1.05 * known['kernels']
    assert row['float32_maps'] == 0


@needs_cuda_aot
@pytest.mark.parametrize(
    ('spread', 'expected'),
    [(False, {'all-reduce'}), (True, {'all-reduce', 'reduce-scatter', 'all-gather'})],
)
def test_gpus_send_gradients_and_no_parts_of_rows(aot_gpu, spread, expected):
    fields = {'shard_optimizer': spread, 'image_size': 32}
    _, text, _ = aot_gpu.compile_for_gpu('se_resnet8_cifar', 32, gpus=4, **fields)
    found = importlib.import_module('aot').collectives(text)  # its neighbour, too
    assert {kind for kind, _ in found} == expected
