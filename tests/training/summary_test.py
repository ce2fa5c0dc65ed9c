"""The paragraph of a run, against reviewed text."""

import pytest

from se_flax.training.summary import run_summary

QUICKSTART = {
    'model': 'se_resnet_quick',
    'parameters': 281_234,
    'dtype': 'float32',
    'device_kind': 'cpu',
    'num_devices': 1,
    'batch_size': 64,
    'bn_group_size': 32,
    'num_steps': 2184,
    'steps_per_epoch': 156.25,
    'data': 'fashion_mnist_mini',
    'train_examples': 10_000,
    'eval_examples': 2_000,
    'num_classes': 10,
    'optimizer_bytes': (1_124_936, 1_124_936),
}


def test_summary_golden(golden):
    runs = [
        {},
        {'num_devices': 8, 'optimizer_bytes': (112_352_096, 14_044_040)},
        {'num_devices': 2},
        {'num_devices': 8},
        {'bn_group_size': None, 'num_devices': 8, 'device_kind': 'TPU v5 lite', 'batch_size': 8192},
        {
            'parameters': 1,
            'eval_examples': 1,
            'num_classes': 1,
            'batch_size': 1,
            'bn_group_size': 1,
        },
    ]
    text = '\n\n'.join(run_summary(**QUICKSTART | changes) for changes in runs) + '\n'
    golden('training/summary.txt', text)


@pytest.mark.parametrize(
    ('batch_size', 'num_devices', 'group', 'spans'),
    [
        (64, 2, 32, False),
        (64, 4, 32, True),
        (96, 2, 32, True),
        (64, 2, None, True),
        (64, 1, None, False),
    ],
)
def test_a_group_that_spans_devices_is_announced(batch_size, num_devices, group, spans):
    """Against a count of the groups that have images on two devices."""
    share, size = batch_size // num_devices, group or batch_size
    crossing = any(
        start // share != (start + size - 1) // share for start in range(0, batch_size, size)
    )
    assert crossing == spans
    sizes = {'batch_size': batch_size, 'num_devices': num_devices, 'bn_group_size': group}
    text = run_summary(**QUICKSTART | sizes).replace('\n', ' ')
    assert ('costs a collective a layer' in text) == spans
    assert ('within a device' in text) == (num_devices > 1 and not spans)
