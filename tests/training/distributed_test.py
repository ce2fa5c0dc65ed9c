"""Runs of several processes on this machine, joined by gloo: undisturbed, stopped and killed."""

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from se_flax.errors import UserError
from se_flax.training import distributed
from se_flax.training.metrics_log import read_rows


def free_ports(number):
    with contextlib.ExitStack() as stack:
        servers = [socket.create_server(('127.0.0.1', 0)) for _ in range(number)]
        return [stack.enter_context(server).getsockname()[1] for server in servers]


def in_host(name, address):
    # Gloo listens at the address of the machine's name, so each host needs its own.
    host = ['ip', 'netns', 'exec', name, 'unshare', '--uts']
    return [*host, 'sh', '-c', f'hostname {address} && exec "$@"', 'sh']


FIELDS = (
    # Another summation order changes the last digits only, and a low rate keeps it so.
    *('schedule=constant', 'learning_rate=0.01'),
    *('num_steps=60', 'checkpoint_every_steps=6', 'eval_every_steps=30', 'keep_checkpoints=10'),
    'heartbeat_seconds=10',
)


@pytest.fixture
def start_processes(fields, environ, tmp_path, request):
    """`start_processes(number, devices, *arguments)` starts a run; killed when the test ends."""
    started = []
    recipe = [f'--config.{field}' for field in FIELDS]

    def start(number, devices, *arguments, each=(), hosts=(), host='127.0.0.1', **variables):
        [port] = free_ports(1)
        command = [sys.executable, 'train_main.py', *fields, *recipe, *arguments]
        if number > 1:
            command += [f'--coordinator={host}:{port}', f'--num-processes={number}']
        env = environ | {'JAX_NUM_CPU_DEVICES': str(devices)} | variables
        processes = []
        for i in range(number):
            log = (tmp_path / f'{len(started)}.log').open('w+')
            own = [f'--process-id={i}'] if number > 1 else []
            own += [f'--config.{each[i]}'] if each else []
            process = subprocess.Popen(
                [*(in_host(*hosts[i]) if hosts else ()), *command, *own],
                env=env,
                cwd=request.config.rootpath,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            process.log = log
            processes.append(process)
            started.append(process)
        return processes

    yield start
    for process in started:
        process.kill()
        process.log.close()


@pytest.fixture
def two_hosts():
    """Two network namespaces with a cable: their names and addresses, and the cable's."""
    first, second, cable = (f'se{kind}{os.getpid()}' for kind in 'abc')
    made = [
        f'ip netns add {first}',
        f'ip netns add {second}',
        f'ip link add {cable} netns {first} type veth peer name {cable} netns {second}',
    ]
    hosts = ((first, '10.77.0.1'), (second, '10.77.0.2'))
    for name, address in hosts:
        made += [
            f'ip -n {name} addr add {address}/24 dev {cable}',
            f'ip -n {name} link set {cable} up',
            f'ip -n {name} link set lo up',
        ]
    made.append(f'ip netns exec {first} unshare --uts hostname {hosts[0][1]}')
    try:
        for line in made:
            done = subprocess.run(line.split(), capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f'this machine lets nobody make hosts of it: {done.stderr}')
        yield hosts, cable
    except FileNotFoundError:
        pytest.skip('this machine has no iproute2')
    finally:
        for name in (first, second):
            subprocess.run(['ip', 'netns', 'del', name], check=False, capture_output=True)


def output(process):
    process.log.seek(0)
    return process.log.read()


def end(processes, code=0, but=None):
    """Waits for all, a minute where they were disturbed; all but one must end with `code`."""
    for process in processes:
        process.wait(60 if code else 400)
        if process is not but:
            assert process.returncode == code, output(process)


def wait_for_three_steps(processes):
    while len(re.findall('^step ', output(processes[0]), re.M)) < 3:
        assert all(p.poll() is None for p in processes), '\n'.join(map(output, processes))
        time.sleep(0.01)


FLOAT32 = 1e-4  # what rounding grows to in sixty steps at that rate


def assert_equal_runs(workdir, other, tolerance):
    rows, others = (read_rows(d / 'metrics.jsonl') for d in (workdir, other))
    assert [(r['step'], r['split']) for r in rows] == [(r['step'], r['split']) for r in others]
    losses, their_losses = ([r['loss'] for r in of] for of in (rows, others))
    np.testing.assert_allclose(losses, their_losses, rtol=tolerance, atol=0)
    assert {r['examples'] for r in rows if r['split'] == 'eval'} == {2000}


@pytest.mark.faults
@pytest.mark.parametrize('number', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_in_float64_processes_change_only_the_last_digits(start_processes, tmp_path, number):
    """One with the optimiser's state whole against several, each with its part."""
    short = (
        'num_steps=8',
        'eval_every_steps=8',
        'dtype=float64',
        'model_fields.stage_sizes=(1,)',
    )
    short = [f'--config.{field}' for field in short]
    # At the tests' own level, 0, float64 is ten times slower to run.
    variables = {'JAX_ENABLE_X64': '1', 'XLA_FLAGS': '--xla_backend_optimization_level=1'}
    for n in (1, number):
        workdir, split = f'--workdir={tmp_path / str(n)}', f'--config.shard_optimizer={n > 1}'
        end(start_processes(n, 4 // n, *short, workdir, split, **variables))
    assert_equal_runs(tmp_path / str(number), tmp_path / '1', 1e-9)


@pytest.mark.slow
def test_stopped_killed_and_moved_it_goes_on(start_processes, tmp_path, kill_run):
    """A run meets every fault in turn, on 1 x 8, 2 x 2, 2 x 1 and 1 x 1 processes and devices."""
    undisturbed, workdir = tmp_path / 'undisturbed', tmp_path / 'run'
    end(start_processes(1, 8, f'--workdir={undisturbed}'))
    shutil.copytree(undisturbed, workdir)
    (workdir / 'DONE').unlink()
    for folder in (workdir / 'checkpoints').iterdir():
        if int(folder.name) > 6:
            shutil.rmtree(folder)
    rows = (workdir / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (workdir / 'metrics.jsonl').write_text(''.join(rows[:6]))

    argument = f'--workdir={workdir}'
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        processes = start_processes(2, 2, argument)
        wait_for_three_steps(processes)
        processes[1].send_signal(number)  # a worker; all save and stop at one step
        end(processes, 143)
        step = re.search(r'stopped after step (\d+)', output(processes[0])).group(1)
        assert int(step) == kill_run['whole_step'](workdir)
        assert not output(processes[1])  # one process speaks for all

    for victim in (1, 0):  # a worker, then the coordinator
        processes = start_processes(2, 1, argument)
        wait_for_three_steps(processes)
        processes[victim].kill()
        end(processes, distributed.PEER_LOST, but=processes[victim])
        assert f'error: {distributed.LOST}' in output(processes[1 - victim])

    end(start_processes(1, 1, argument))
    assert_equal_runs(workdir, undisturbed, FLOAT32)


@pytest.mark.slow
def test_two_hosts_whose_cable_is_pulled(start_processes, two_hosts, tmp_path):
    """Nothing says that the other is gone, as a pulled cable is silent: the heartbeat has to."""
    undisturbed, workdir = (f'--workdir={tmp_path / name}' for name in ('undisturbed', 'run'))
    short = ('--config.num_steps=12', '--config.eval_every_steps=12')
    end(start_processes(1, 2, undisturbed, *short))
    hosts, cable = two_hosts
    first, address = hosts[0]
    apart = {'hosts': hosts, 'host': address}
    processes = start_processes(2, 1, workdir, *short, **apart)
    wait_for_three_steps(processes)
    subprocess.run(['ip', '-n', first, 'link', 'set', cable, 'down'], check=True)
    end(processes, distributed.PEER_LOST)
    assert all(f'error: {distributed.LOST}' in output(process) for process in processes)
    subprocess.run(['ip', '-n', first, 'link', 'set', cable, 'up'], check=True)
    end(start_processes(2, 1, workdir, *short, **apart))
    assert_equal_runs(tmp_path / 'run', tmp_path / 'undisturbed', FLOAT32)


@pytest.mark.faults
def test_processes_told_different_things_all_stop(start_processes, tmp_path):
    """Process 0 claims the workdir; what the other was told differs from that."""
    processes = start_processes(2, 1, f'--workdir={tmp_path / "run"}', each=('seed=0', 'seed=1'))
    end(processes, 2)
    assert 'error: process 1 failed; see its output' in output(processes[0])
    assert 'seed was 0, now 1' in output(processes[1])


@pytest.mark.faults
def test_one_process_cannot_write_its_part_of_a_checkpoint(start_processes, tmp_path):
    """The others wait for it in the background; they must not wait to the end of their patience."""
    split = '--config.shard_optimizer=true'  # so that each has something to write
    processes = start_processes(2, 1, f'--workdir={tmp_path / "run"}', split)
    wait_for_three_steps(processes)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, (1000, hard))
    end(processes, 2)
    assert re.search(r'^error: process 1 could not save step \d+;', output(processes[0]), re.M)
    assert re.fullmatch(r'error: could not save step \d+ .*too large.*\n', output(processes[1]))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('nohost', 2, 0), 'must be HOST:PORT'),
        (('host:9000', 2, 2), 'must be below --num-processes=2; use 0 to 1'),
        (('host:9000', 2, -1), 'must be at least 0'),
        (('host:9000', 0, 0), '--num-processes=0 must be at least 1'),
        ((None, 2, None), 'did not connect'),
    ],
)
def test_wrong_flags_are_told(arguments, message, monkeypatch):
    for variable in [v for v in os.environ if v.startswith(('SLURM', 'JAX_COORDINATOR'))]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(distributed, '_report_aborts', lambda: None)
    with pytest.raises(UserError, match=re.escape(message)):
        distributed.connect(arguments, heartbeat_seconds=10)


@pytest.mark.faults
@pytest.mark.parametrize('number', [0, 1])
def test_a_process_that_stays_alone_ends_as_one_that_was_left(number, environ):
    [port] = free_ports(1)
    program = (
        'import functools, jax\n'
        'from se_flax.training.distributed import connect\n'
        'wait = functools.partial(jax.distributed.initialize, initialization_timeout=2)\n'
        'jax.distributed.initialize = wait\n'
        f'connect(("127.0.0.1:{port}", 2, {number}), heartbeat_seconds=10)\n'
    )
    command = [sys.executable, '-c', program]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100)
    assert done.returncode == distributed.PEER_LOST, done.stderr
    assert f'error: {distributed.LOST}' in done.stderr


@pytest.mark.parametrize(
    ('host', 'message'),
    [('no-such-host.invalid', 'check the name'), ('127.0.0.1', 'other processes are missing')],
)
def test_a_long_wait_says_what_is_missing(host, message, monkeypatch, caplog):
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = f'{host}:{server.getsockname()[1]}'
        monkeypatch.setattr(distributed.global_state, 'coordinator_address', address)
        distributed._report_waiting()
    assert f'process 0 at {address}' in caplog.text
    assert message in caplog.text


def test_environment_stands_in_for_flags(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        jax.distributed, 'initialize', lambda *args, **kwargs: asked.update(args=args, **kwargs)
    )
    monkeypatch.setattr(distributed, '_report_aborts', lambda: None)
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'host:9000')
    monkeypatch.setenv('JAX_NUM_PROCESSES', '4')
    monkeypatch.setenv('JAX_PROCESS_ID', '3')
    distributed.connect((None, None, None), heartbeat_seconds=7)
    assert asked['args'] == ('host:9000', 4, 3)
    assert asked['heartbeat_timeout_seconds'] == 7
    distributed.connect(('other:1', 2, 0), heartbeat_seconds=7)  # a flag wins
    assert asked['args'] == ('other:1', 2, 0)
    monkeypatch.setenv('JAX_PROCESS_ID', 'three')
    with pytest.raises(UserError, match='JAX_PROCESS_ID=three must be a whole number'):
        distributed.connect((None, None, None), heartbeat_seconds=7)
