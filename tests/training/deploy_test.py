"""`deploy/jobset.yaml` and the Dockerfile, as far as that goes without a cluster; Open MPI."""

import configparser
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from se_flax.training.config import parse_args
from se_flax.training.distributed import PEER_LOST
from se_flax.training.metrics_log import read_rows
from se_flax.training.preemption import EXIT_CODE

from .distributed_test import free_ports


@pytest.fixture
def deploy(request):
    return request.config.rootpath / 'deploy'


@pytest.fixture
def jobset(deploy):
    return yaml.safe_load((deploy / 'jobset.yaml').read_text())


@pytest.fixture
def container(jobset):
    [container] = job(jobset)['template']['spec']['containers']
    return container


def job(jobset):
    [replicated] = jobset['spec']['replicatedJobs']
    assert replicated['replicas'] == 1
    return replicated['template']['spec']


def test_the_jobset_restarts_what_a_restart_can_help(jobset, container, deploy):
    """It fails for good on the codes that docs/reference/exit_codes.md says not to run again."""
    table = (deploy.parent / 'docs/reference/exit_codes.md').read_text()
    rows = re.findall(r'^\| (\d+) \| .* \| (.*) \|$', table, re.M)
    final = {int(code) for code, again in rows if not again.startswith(('yes', 'it would', 'if'))}
    [rule] = job(jobset)['podFailurePolicy']['rules']
    codes = rule['onExitCodes']
    assert (rule['action'], codes['operator']) == ('FailJob', 'In')
    assert set(codes['values']) == final
    assert not final & {EXIT_CODE, PEER_LOST}
    assert codes['containerName'] == container['name']
    policy = jobset['spec']['failurePolicy']
    [rule] = policy['rules']
    assert (rule['action'], rule['onJobFailureReasons']) == ('FailJobSet', ['PodFailurePolicy'])
    assert policy['maxRestarts'] > 0
    # What Kubernetes demands of a job with such a policy, and of one whose pods depend on another.
    assert job(jobset)['template']['spec']['restartPolicy'] == 'Never'
    assert job(jobset)['backoffLimit'] == 0


def test_the_jobsets_processes_are_told_how_many_they_are(jobset, container):
    spec = job(jobset)
    env = {each['name']: each.get('value') for each in container['env']}
    assert spec['completionMode'] == 'Indexed'
    hosts = int(env['JAX_NUM_PROCESSES'])
    assert spec['parallelism'] == spec['completions'] == hosts
    selector = spec['template']['spec']['nodeSelector']
    width, height = map(int, selector['cloud.google.com/gke-tpu-topology'].split('x'))
    assert width * height == hosts * container['resources']['limits']['google.com/tpu']
    [one_slice] = jobset['metadata']['annotations'].values()
    assert one_slice == 'cloud.google.com/gke-nodepool'
    name = jobset['metadata']['name']
    [replicated] = jobset['spec']['replicatedJobs']
    host, port = env['JAX_COORDINATOR_ADDRESS'].split(':')
    assert host == f'{name}-{replicated["name"]}-0-0.{name}'
    assert int(port) == container['ports'][0]['containerPort']


def test_the_jobsets_command_parses(container, monkeypatch, deploy):
    monkeypatch.chdir(deploy.parent)
    python, program, *arguments = container['command']
    assert (python, program) == ('python', 'train_main.py')
    config, _, _ = parse_args([argument.replace('gs://', '/') for argument in arguments])
    assert config.model == 'se_resnet50'


@pytest.mark.faults
def test_two_pods_of_the_jobset_train(jobset, container, fields, environ, tmp_path, deploy):
    """Its command and variables in two processes here; only names, number and folder differ."""
    [port] = free_ports(1)
    env = {each['name']: each.get('value') for each in container['env']}
    env |= {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': '2'}
    own = ('--config=', '--workdir=', '--config.data_dir=', '--config.dtype=')
    command = [word for word in container['command'] if not word.startswith(own)]
    command = [sys.executable, *command[1:], f'--workdir={tmp_path}/run', *fields]
    command.append('--config.num_steps=4')
    pods = [
        subprocess.Popen(
            command,
            env=environ | env | {'JAX_PROCESS_ID': str(index), 'JAX_NUM_CPU_DEVICES': '1'},
            cwd=deploy.parent,
        )
        for index in range(2)
    ]
    assert [pod.wait(300) for pod in pods] == [0, 0]
    assert (tmp_path / 'run' / 'DONE').exists()


def test_the_image_has_what_the_jobset_starts(deploy, container):
    """A parse: each instruction is known, each copied file exists, each extra is one of ours."""
    text = re.sub(r'\\\n|^#.*\n', '', (deploy / 'Dockerfile').read_text(), flags=re.M)
    lines = [line.split(None, 1) for line in text.splitlines() if line]
    assert [instruction for instruction, _ in lines] == (
        ['FROM', 'WORKDIR', 'COPY', 'COPY', 'COPY', 'ARG', 'RUN', 'CMD']
    )
    copied = [word for name, rest in lines if name == 'COPY' for word in rest.split()[:-1]]
    assert [name for name in copied if not (deploy.parent / name).exists()] == []
    _, program, *arguments = container['command']
    config = re.search(r'--config=([\w/.]+)', ' '.join(arguments)).group(1)
    assert {program, config.split('/')[0]} <= set(copied)
    setup = configparser.ConfigParser()
    setup.read(deploy.parent / 'setup.cfg')
    assert {setup['metadata']['long_description'].split()[-1], 'LICENSE', 'se_flax'} <= set(copied)
    [run] = [rest for name, rest in lines if name == 'RUN']
    extras = re.search(r"'\.\[(.*?)\]'", run).group(1).split(',')
    assert set(extras) <= set(setup['options.extras_require'])
    python = re.search(r'python:3\.(\d+)', text).group(1)
    assert f'Python :: 3.{python}' in setup['metadata']['classifiers']


@pytest.fixture
def mpirun(fields, environ, request):
    """`mpirun(workdir)` starts two processes with Open MPI; killed when the test ends."""
    if not shutil.which('mpirun'):
        pytest.skip('no mpirun: apt-get install openmpi-bin')
    started = []

    def start(workdir):
        command = ['mpirun', '-n', '2', '--oversubscribe', '--allow-run-as-root', sys.executable]
        command += ['train_main.py', '--distributed', f'--workdir={workdir}', *fields]
        with workdir.with_suffix('.log').open('a') as log:
            process = subprocess.Popen(
                command,
                env=environ | {'JAX_NUM_CPU_DEVICES': '1', 'TERM': 'dumb'},  # mpirun is a terminal
                cwd=request.config.rootpath,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(('number', 'code'), [(signal.SIGUSR1, EXIT_CODE), (signal.SIGTERM, 1)])
def test_open_mpi_stops_and_resumes(mpirun, tmp_path, kill_run, number, code):
    """`mpirun` passes on SIGUSR1; told to end, it gives the processes a second."""
    undisturbed, workdir = tmp_path / 'undisturbed', tmp_path / 'run'
    assert mpirun(undisturbed).wait(300) == 0
    process = mpirun(workdir)
    while len(read_rows(workdir / 'metrics.jsonl')) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(120) == code
    assert mpirun(workdir).wait(300) == 0
    log = workdir.with_suffix('.log').read_text()
    [resumed] = re.findall(r'resuming from step (\d+)', log)
    if code == EXIT_CODE:
        assert f'stopped after step {resumed}, nothing is lost' in log
    assert kill_run['differences'](undisturbed, workdir) == []
