"""`se-flax evaluate` in several processes on this machine, joined by gloo."""

import signal
import subprocess
import sys

import pytest

from se_flax.training.distributed import LOST, PEER_LOST

from ..training.distributed_test import free_ports

pytestmark = pytest.mark.faults

RUN = 'import sys; from se_flax.cli import main; sys.exit(main(sys.argv[1:]))'
DIE_AT_THE_THIRD_BATCH = """
import os, signal
from se_flax.evaluation import evaluator
shard_batch, calls = evaluator.shard_batch, []
def dying(*args):
    calls.append(args)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return shard_batch(*args)
evaluator.shard_batch = dying
"""


@pytest.fixture
def evaluate(reference, environ, request):
    """`evaluate(devices, *arguments, ...)`: code, output and errors of each process.

    `devices`, `each` and `before` have the devices, arguments and patches of each process.
    """

    def run(devices, *arguments, each=((), ()), before=('', '')):
        [port] = free_ports(1)
        processes = []
        for i, count in enumerate(devices):
            own = ['evaluate', '--workdir', reference, *arguments, *each[i]]
            if len(devices) > 1:
                own += [f'--coordinator=127.0.0.1:{port}', '--num-processes=2', f'--process-id={i}']
            processes.append(
                subprocess.Popen(
                    [sys.executable, '-c', f'{before[i]}\n{RUN}', *map(str, own)],
                    env=environ | {'JAX_NUM_CPU_DEVICES': str(count)},
                    cwd=request.config.rootpath,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        outputs = [process.communicate(timeout=200) for process in processes]
        return [(p.returncode, *texts) for p, texts in zip(processes, outputs, strict=True)]

    return run


def test_two_processes_say_and_write_what_one_does(evaluate, tmp_path):
    """Each device has the same images, so that even the rounding is equal."""
    said, written = [], []
    for devices in ((2,), (1, 1)):
        file = tmp_path / f'{len(devices)}.csv'
        ended = evaluate(devices, '--predictions', file, '--crops', '2', '--per-class')
        assert [code for code, _, _ in ended] == [0] * len(devices), ended
        assert [out for _, out, _ in ended[1:]] == [''] * (len(devices) - 1)
        lines = ended[0][1].replace(str(file), 'FILE').splitlines()
        said.append([line for line in lines if not line.startswith('[Gloo]')])  # JAX's, on CPUs
        written.append(file.read_text())
    assert any(line.startswith('2,000 images of fashion_mnist_mini') for line in said[0])
    assert said[1] == said[0]
    assert len(written[0].splitlines()) == 2001
    assert written[1] == written[0]


def test_an_error_of_one_ends_both(evaluate, tmp_path):
    wrong = '--data', 'fashion_mnist', '--data-dir', str(tmp_path)
    ended = evaluate((1, 1), each=((), wrong))
    assert [code for code, _, _ in ended] == [2, 2]
    assert 'error: process 1 failed; see its output' in ended[0][2]
    assert f"error: data set 'fashion_mnist' is not in {tmp_path}" in ended[1][2]


def test_a_lost_process_ends_the_other(evaluate):
    ended = evaluate((1, 1), before=('', DIE_AT_THE_THIRD_BATCH))
    assert [code for code, _, _ in ended] == [PEER_LOST, -signal.SIGKILL]
    assert f'error: {LOST}' in ended[0][2]
    assert 'Traceback' not in ended[0][2]
