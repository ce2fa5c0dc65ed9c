"""The files of `deploy/` on a real SLURM: two nodes on this machine, disturbed in every way."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

from se_flax.training.metrics_log import read_rows

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


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(('127.0.0.1', 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


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
    munged = ['munged', '--force', '--foreground']
    munged += [f'--{option}={folder / name}' for option, name in options.items()]
    env = environ | {'PATH': path, 'SLURM_CONF': str(folder / 'slurm.conf')}
    daemons = []
    with (folder / 'log').open('w') as log:
        try:
            for command in (munged, ['slurmctld', '-D'], *(['slurmd', '-D', '-N', n] for n in NODES)):
                daemons.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
                time.sleep(0.5)
            deadline = time.monotonic() + 60
            sinfo = ['sinfo', '--noheader', '--Node', '--format=%T']
            while subprocess.run(sinfo, env=env, capture_output=True, text=True).stdout != 'idle\n' * 2:
                assert time.monotonic() < deadline, (folder / 'log').read_text()
                time.sleep(0.2)
            yield env
        finally:
            subprocess.run(['scancel', '--signal=KILL', '--full', '--user=root'], env=env, check=False)
            time.sleep(1)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(60)


class Job:
    """A script of `deploy/`, submitted with some options and arguments from a folder of its own."""

    def __init__(self, cluster, root, folder, script, *arguments, options=()):
        folder.mkdir(exist_ok=True)
        for name in ('train_main.py', 'configs', 'se_flax'):
            (folder / name).symlink_to(root / name)
        (folder / '.venv').symlink_to(sys.prefix)
        self.env, self.folder = cluster | {'JAX_NUM_CPU_DEVICES': '1'}, folder
        self.env['PYTHONPATH'] = str(root)
        command = ['sbatch', '--parsable', *options, root / 'deploy' / script, *arguments]
        self.id = self.run(command).strip()

    def run(self, command):
        done = subprocess.run(
            command, env=self.env, cwd=self.folder, check=True, capture_output=True, text=True
        )
        return done.stdout

    def log(self):
        return ''.join(path.read_text() for path in sorted(self.folder.glob('slurm-*.log')))

    def field(self, name):
        shown = self.run(['scontrol', 'show', 'job', '--oneliner', self.id])
        return re.search(rf'\b{name}=(\S+)', shown).group(1)

    def wait_for_steps(self, number):
        deadline = time.monotonic() + 120
        while not re.search(rf'^step {number}/', self.log(), re.M):
            assert time.monotonic() < deadline, self.log()
            assert self.field('JobState') not in ('FAILED', 'COMPLETED'), self.log()
            time.sleep(0.02)

    def end(self):
        """Waits for the end; returns the state and the exit code."""
        deadline = time.monotonic() + 300
        while self.run(['squeue', '--noheader', f'--jobs={self.id}']):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)
        return self.field('JobState'), self.field('ExitCode')


TWO_NODES = ('--ntasks-per-node=1', '--cpus-per-task=1')


@pytest.fixture(scope='module')
def submit(cluster, fields, tmp_path_factory, request):
    """`submit(*options, fields=...)` trains with `deploy/slurm.sbatch` into `folder / 'run'`."""

    def submit(*options, workdir='run', more=()):
        folder = tmp_path_factory.mktemp('job')
        arguments = (f'--workdir={folder / workdir}', *fields, *more)
        options = (*TWO_NODES, *options)
        return Job(
            cluster, request.config.rootpath, folder, 'slurm.sbatch', *arguments, options=options
        )

    return submit


@pytest.fixture(scope='module')
def undisturbed(submit):
    job = submit()
    assert job.end() == ('COMPLETED', '0:0'), job.log()
    assert job.log().count('[Gloo]') <= 1
    return job.folder / 'run'


def pids(job):
    """The training processes of a job, and no launcher of theirs."""
    shown = job.run(['pgrep', '--full', f'^[^ ]*python.* --workdir={job.folder}/run'])
    return [int(pid) for pid in shown.split()]


DISTURBANCES = {
    'requeue': 'scontrol requeue {id}',
    'USR1': 'scancel --signal=USR1 {id}',
    'TERM': 'scancel --signal=TERM {id}',
    'USR1 to the shell': 'scancel --batch --signal=USR1 {id}',
    'TERM to the shell': 'scancel --batch --signal=TERM {id}',
    'USR1 to all': 'scancel --full --signal=USR1 {id}',
}


@pytest.mark.parametrize('name', DISTURBANCES)
def test_it_requeues_itself_and_loses_no_step(submit, undisturbed, kill_run, name):
    job = submit()
    job.wait_for_steps(5)
    job.run(DISTURBANCES[name].format(id=job.id).split())
    assert job.end() == ('COMPLETED', '0:0'), job.log()
    assert job.field('Restarts') == '1'
    stopped = re.findall(r'stopped after step (\d+)', job.log())
    assert len(stopped) == 1, job.log()
    assert f'resuming from step {stopped[0]}' in job.log()
    print(f'{name}: stopped after step {stopped[0]}')
    assert kill_run['differences'](undisturbed, job.folder / 'run') == []
