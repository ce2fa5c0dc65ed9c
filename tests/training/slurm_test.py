"""The files of `deploy/` on a real SLURM: two nodes on this machine, disturbed in every way."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from se_flax.training.metrics_log import read_rows

from .distributed_test import free_ports

pytestmark = pytest.mark.slow

HOST = socket.gethostname().partition('.')[0]
NODES = HOST, f'{HOST}-2'  # processes connect to the first node by name, so it must resolve
# A requeued job waits until `cred_expire` seconds have passed, by default 120, and is scheduled.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
StateSaveLocation={folder}/state
SlurmUser=root
SlurmdUser=root
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket={folder}/munge,cred_expire=5
CredType=cred/munge
SchedulerParameters=sched_interval=1,bf_interval=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
MailProg=/bin/true
KillWait=60
GresTypes=gpu
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=64 Gres=gpu:4
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=64 Gres=gpu:4
PartitionName=all Nodes=ALL Default=YES
"""


@pytest.fixture(scope='module')
def cluster(tmp_path_factory, environ):
    """Starts SLURM; yields the environment of its commands."""
    path = f'{os.environ["PATH"]}:/usr/sbin'
    missing = [p for p in ('munged', 'slurmctld', 'slurmd') if not shutil.which(p, path=path)]
    if missing:
        pytest.skip(f'no {" and no ".join(missing)}: apt-get install slurm-wlm munge')
    if os.getuid():
        pytest.skip('only root can start the nodes of SLURM')
    folder = tmp_path_factory.mktemp('slurm')
    munged = configure(folder)
    env = environ | {'PATH': path, 'SLURM_CONF': str(folder / 'slurm.conf')}
    commands = [munged, ['slurmctld', '-D'], *(['slurmd', '-D', '-N', name] for name in NODES)]
    daemons = []
    with (folder / 'log').open('w') as log:
        try:
            for command in commands:
                daemons.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
                time.sleep(0.5)
            until(lambda: states_of_nodes(env) == ['idle', 'idle'], 60, (folder / 'log').read_text)
            yield env
        finally:
            for options in (['--signal=KILL', '--full'], []):
                subprocess.run(['scancel', '--user=root', *options], env=env, check=False)
            with contextlib.suppress(AssertionError):  # else what a failed test left would stay
                until(lambda: not jobs(env), 30, str)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(60)


def configure(folder):
    """Writes what SLURM needs; returns the command of its key server."""
    for name in ('state', *NODES):
        (folder / name).mkdir()
    for i in range(4):
        (folder / f'gpu{i}').touch()
    (folder / 'gres.conf').write_text(f'Name=gpu File={folder}/gpu[0-3]\n')
    (folder / 'key').write_bytes(os.urandom(1024))
    (folder / 'key').chmod(0o400)
    text = CONFIGURATION.format(folder=folder, host=HOST, nodes=NODES, ports=free_ports(3))
    (folder / 'slurm.conf').write_text(text)
    options = {'key-file': 'key', 'socket': 'munge', 'pid-file': 'munge.pid', 'seed-file': 'seed'}
    options = [f'--{option}={folder / name}' for option, name in options.items()]
    return ['munged', '--force', '--foreground', *options]


def states_of_nodes(env):
    command = ['sinfo', '--noheader', '--Node', '--format=%T']
    return subprocess.run(command, env=env, capture_output=True, text=True).stdout.split()


def jobs(env, *options):
    command = ['squeue', '--noheader', *options]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def until(condition, seconds, log):
    """Waits for a condition; fails with the log."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.05)


class Job:
    """A script of `deploy/`, submitted with some options and arguments from a folder of its own."""

    def __init__(self, cluster, root, folder, script, *arguments, options=()):
        for name in ('train_main.py', 'configs'):
            (folder / name).symlink_to(root / name)
        (folder / '.venv').symlink_to(sys.prefix)
        self.env = cluster | {'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': str(root)}
        self.folder = folder
        command = ['sbatch', '--parsable', *options, root / 'deploy' / script, *arguments]
        self.id = self.run(command).strip()

    def run(self, command):
        options = {'stdout': subprocess.PIPE, 'text': True, 'check': True}
        return subprocess.run(command, env=self.env, cwd=self.folder, **options).stdout

    def log(self):
        return ''.join(path.read_text() for path in sorted(self.folder.glob('slurm-*.log')))

    def field(self, name, task=''):
        shown = self.run(['scontrol', 'show', 'job', '--oneliner', f'{self.id}{task}'])
        return re.search(rf'\b{name}=(\S+)', shown).group(1)

    def wait_for_steps(self, number):
        until(lambda: re.search(rf'^step {number}/', self.log(), re.M), 300, self.log)

    def end(self):
        """Waits for the end; returns the state and the exit code."""
        until(lambda: not jobs(self.env, f'--jobs={self.id}'), 600, self.log)
        return self.field('JobState'), self.field('ExitCode')


@pytest.fixture(scope='module')
def start(cluster, tmp_path_factory, request):
    """`start(script, *arguments, options=())` submits a script of `deploy/`."""
    root = request.config.rootpath
    return lambda *args, **kwargs: Job(
        cluster, root, tmp_path_factory.mktemp('job'), *args, **kwargs
    )


@pytest.fixture(scope='module')
def train(start, fields):
    """`train(*options, more=())` trains with `slurm.sbatch`, into the folder `run` of the job."""

    def train(*options, more=()):
        options = ('--ntasks-per-node=1', '--cpus-per-task=1', *options)
        return start('slurm.sbatch', '--workdir=run', *fields, *more, options=options)

    return train


@pytest.fixture(scope='module')
def undisturbed(train):
    job = train()
    assert job.end() == ('COMPLETED', '0:0'), job.log()
    assert job.log().count('Workdir: ') == 1
    return job.folder / 'run'


DISTURBANCES = {
    'requeue': 'scontrol requeue {id}',
    'USR1': 'scancel --signal=USR1 {id}',
    'TERM': 'scancel --signal=TERM {id}',
    'USR1 to the shell': 'scancel --batch --signal=USR1 {id}',
    'TERM to the shell': 'scancel --batch --signal=TERM {id}',
    'USR1 to all': 'scancel --full --signal=USR1 {id}',
}


@pytest.mark.parametrize('name', DISTURBANCES)
def test_it_requeues_itself_and_loses_no_step(train, undisturbed, kill_run, name):
    job = train()
    job.wait_for_steps(5)
    job.run(DISTURBANCES[name].format(id=job.id).split())
    assert job.end() == ('COMPLETED', '0:0'), job.log()
    assert job.field('Restarts') == '1'
    assert job.log().count('Exited with exit code 143') == 2
    [stopped] = re.findall(r'stopped after step (\d+)', job.log())
    assert f'resuming from step {stopped}' in job.log()
    assert kill_run['differences'](undisturbed, job.folder / 'run') == []


@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_costs_the_steps_since_a_checkpoint(train, undisturbed, kill_run, victim):
    job = train()
    job.wait_for_steps(5)
    processes = job.run(['pgrep', '--full', f'^{job.folder}/.venv/bin/python']).split()
    name = f'SLURM_PROCID={victim}\0'.encode()
    [pid] = [p for p in processes if name in pathlib.Path(f'/proc/{p}/environ').read_bytes()]
    os.kill(int(pid), signal.SIGKILL)
    assert job.end() == ('COMPLETED', '0:0'), job.log()
    assert job.field('Restarts') == '1'
    assert f'task {1 - victim}: Exited with exit code 142' in job.log()
    assert re.search(r'resuming from step [1-9]', job.log())
    assert kill_run['differences'](undisturbed, job.folder / 'run') == []


def test_two_tasks_of_one_node_are_two_nodes(train, undisturbed, kill_run):
    job = train('--nodes=1', '--ntasks-per-node=2')
    assert job.end() == ('COMPLETED', '0:0'), job.log()
    assert kill_run['differences'](undisturbed, job.folder / 'run') == []


def test_a_mistake_is_not_repeated(train):
    job = train(more=['--config.batch_size=7'])
    assert job.end() == ('FAILED', '2:0'), job.log()
    assert job.field('Restarts') == '0'


def test_a_cancelled_job_saves_and_stays_away(train):
    job = train()
    job.wait_for_steps(5)
    job.run(['scancel', job.id])
    state, _ = job.end()
    assert state == 'CANCELLED'
    assert job.field('Restarts') == '0'
    assert 'stopped after step' in job.log()


def test_an_array_makes_the_study_of_one_process(start, fields, kill_run, request):
    """Both tasks are disturbed; the last one has the id of the whole array."""
    arguments = 'ablate', 'squeeze', '--config', 'configs/quickstart.py', '--seeds', '2', *fields
    arguments += ('--config.num_steps=12',)
    job = start('slurm_ablate.sbatch', *arguments[1:], '--out', 'study', options=('--array=0-1',))
    runs = 'se_resnet8_cifar', 'se_resnet8_cifar_se.squeeze=max'
    for task, name in enumerate(runs):
        rows = job.folder / f'study/runs/{name}/seed0/metrics.jsonl'
        until(lambda rows=rows: len(read_rows(rows)) >= 3, 300, job.log)
        job.run(['scancel', '--signal=USR1', f'{job.id}_{task}'])
    job.end()
    for task in ('_0', '_1'):
        assert job.field('JobState', task) == 'COMPLETED', job.log()
        assert job.field('Restarts', task) == '1'
    out = job.folder / 'alone'
    command = [sys.executable, '-m', 'se_flax.cli', *arguments, '--out', out]
    subprocess.run(command, env=job.env, cwd=request.config.rootpath, check=True)
    for name in runs:
        for seed in ('seed0', 'seed1'):
            workdirs = (folder / 'runs' / name / seed for folder in (out, job.folder / 'study'))
            assert kill_run['differences'](*workdirs) == []
    ours, theirs = (
        [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]
        for folder in (job.folder / 'study', out)
    )
    for row in (*ours, *theirs):
        del row['images_per_second']
    assert len(ours) == 2
    assert ours == theirs
