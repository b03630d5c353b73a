"""Several processes: what each reads, what they make together, how they end, how they start."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from jax._src.clusters import ClusterEnv, cloud_tpu_cluster
from PIL import Image

from gen_jax.errors import UserError
from gen_jax.runtime import sharding
from gen_jax.runtime.compilation import spare_threads

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / 'docs/launch'
VAE = f'--config={ROOT}/configs/vae_fashion_mnist.py:tiny'  # on digits; compiles in seconds
STEPS, BATCH = 6, 8
# Seconds within which one process ends after another died.
BOUND = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


@pytest.fixture
def pair(main):
    """Starts two processes of main.py: pair(args...) -> [Popen, Popen]; kills what is left."""
    started = []

    def start(*args):
        port = free_port()
        flags = f'--coordinator=localhost:{port}', '--processes=2'
        new = [main(*args, *flags, f'--process={i}', wait=False) for i in range(2)]
        started.extend(new)
        return new

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(processes) -> str:
    """What process 0 prints, once all have ended well."""
    told = [process.communicate(timeout=280) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    # Gloo greets on its own.
    spoken = [line for line in told[1][0].splitlines() if not line.startswith('[Gloo]')]
    assert spoken == [], 'only process 0 speaks'
    return told[0][0]


def fingerprint(out: str) -> str:
    return out.split('fingerprint ')[1].split()[0]


# What each reads.


class Recorded:
    """A source that remembers which examples it was asked for."""

    def __init__(self, source):
        self._source, self.num_classes, self.read = source, source.num_classes, set()

    def __len__(self):
        return len(self._source)

    def __getitem__(self, i):
        self.read.add(i)
        return self._source[i]


def small():
    from gen_jax.config import default

    config = default('autoencoders.vae')
    changes = {'steps': STEPS, 'batch_size': BATCH, 'sample_every': 0, 'model.channels': 4}
    config.update_from_flattened_dict(changes)
    return config


def train_and_tell(port: str, process: str, folder: str) -> None:
    """Trains as one of two processes and prints which training images it has read.

    Each has two devices, which are no neighbours on the mesh, as a TPU's hosts may have them.
    """
    from gen_jax import train
    from gen_jax.data import sources

    spare_threads()
    sharding.join_processes(f'localhost:{port}', 2, int(process))
    sharding._arranged = lambda devices, sizes: np.array(devices)[[0, 2, 1, 3]].reshape(sizes)
    check_places()
    plain, opened = sources.open_source, {}

    def open_source(data, split):
        return opened.setdefault(split, Recorded(plain(data, split)))

    sources.open_source = open_source
    train.run(small(), Path(folder))
    print('read', json.dumps(sorted(opened['train'].read)))


def check_places() -> None:
    """What this process has read lies in the global array where it belongs."""
    split = sharding.batch_sharding(sharding.make_mesh(small().mesh))
    whole, mine = np.arange(2 * BATCH).reshape(BATCH, 2), sharding.rows(split, BATCH)
    assert len(mine) == BATCH // 2
    for part in sharding.to_global(whole[mine], split, mine, BATCH).addressable_shards:
        np.testing.assert_array_equal(part.data, whole[part.index])


@pytest.mark.slow
def test_each_process_reads_its_rows_and_no_others(tmp_path, xla_cache):
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'JAX_COMPILATION_CACHE_DIR': str(xla_cache),
        'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=2',
    }
    command = [sys.executable, __file__, str(free_port())]
    processes = [
        subprocess.Popen(
            [*command, str(i), str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    told = [process.communicate(timeout=200)[0] for process in processes]
    read = [set(json.loads(out.split('read ')[1])) for out in told]
    # The order of the examples, from the pipeline of a single process.
    from gen_jax.data import pipeline, sources

    config = small()
    whole = Recorded(sources.open_source(config.data, 'train'))
    config.data.prefetch, config.data.threads = 1, 1
    batches = pipeline.train_iterator(config, whole)
    images = [next(batches)['image'] for _ in range(STEPS)]
    pixels = {whole._source[i]['image'].tobytes(): i for i in range(len(whole))}
    rows = [[pixels[pipeline.to_uint8(x).tobytes()] for x in batch] for batch in images]
    for p, mine in enumerate(read):
        # Every second quarter.
        quarters = [np.reshape(row, (4, -1))[p::2].ravel().tolist() for row in rows]
        assert {i for row in quarters for i in row} <= mine
    assert not read[0] & read[1]


# What they make together.


def pictures(folder: Path) -> np.ndarray:
    paths = sorted(folder.glob('samples/at_step_*/*.png'))
    return np.stack([np.asarray(Image.open(path)) for path in paths]).astype(int)


@pytest.mark.slow
def test_two_processes_sample_and_evaluate_as_one_does(main, pair, tmp_path):
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert main(VAE, f'--workdir={one}').returncode == 0
    shutil.copytree(one, two)
    for mode in ('sample', 'evaluate'):
        done = main(VAE, f'--workdir={one}', f'--mode={mode}')
        assert done.returncode == 0, done.stderr
        end(pair(VAE, f'--workdir={two}', f'--mode={mode}'))
    assert len(pictures(two)) == 8
    assert np.abs(pictures(two) - pictures(one)).max() <= 1  # another program may round otherwise
    reports = [json.loads((folder / 'metrics.json').read_text()) for folder in (one, two)]
    assert reports[0].keys() == reports[1].keys()
    assert {'elbo', 'fid_digits'} <= reports[0].keys()
    for name, row in reports[0].items():
        assert reports[1][name]['value'] == pytest.approx(row['value'], rel=1e-3), name
        assert reports[1][name]['n'] == row['n'], name


# How they end.

LONG = (
    VAE,
    '--config.steps=160',
    '--config.checkpoint_every=50',
    '--config.log_every=25',
    '--config.sample_every=0',
)


def steps_logged(run: Path) -> list[int]:
    log = run / 'metrics.jsonl'
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line)['step'] for line in lines if line.endswith('\n')]


@pytest.fixture(scope='module')
def whole():
    """The fingerprint of the run that nobody interrupts, once it is known."""
    return []


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_when_one_dies_the_other_ends_and_the_restart_resumes(pair, tmp_path, whole, victim):
    if not whole:
        whole.append(fingerprint(end(pair(*LONG, f'--workdir={tmp_path}/whole'))))
    run = tmp_path / 'killed'
    processes = pair(*LONG, f'--workdir={run}')
    # Between two checkpoints: in a save, Orbax's barriers take up to a heartbeat to fail.
    while not ((run / 'checkpoints/50').exists() and 75 in steps_logged(run)):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    processes[victim].kill()
    died = time.monotonic()
    _, told = processes[1 - victim].communicate(timeout=BOUND)
    assert time.monotonic() - died < BOUND
    assert processes[victim].wait() == -signal.SIGKILL
    code = processes[1 - victim].returncode
    if victim == 0 and code == -signal.SIGABRT:  # JAX noticed before a collective failed
        assert 'most likely indicates that another task died' in told
    else:
        assert code == 1, told
        assert told.splitlines()[-1].startswith(f'process {1 - victim} of 2 ends')
    assert not (run / 'checkpoints/160').exists()
    assert fingerprint(end(pair(*LONG, f'--workdir={run}'))) == whole[0]
    steps = steps_logged(run)
    assert steps == sorted(set(steps))
    assert steps[-1] == 160


@pytest.mark.slow
def test_sigterm_to_one_stops_all_after_the_same_step(pair, tmp_path):
    asked = '--config.steps=1000000', '--stopped=143', f'--workdir={tmp_path}'
    processes = pair(*LONG, *asked)
    while not steps_logged(tmp_path):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=BOUND) for process in processes]
    # On all: to a scheduler 0 of one would be a part that is done.
    assert [process.returncode for process in processes] == [143, 143], told
    step = re.search(r'^step (\d+), state fingerprint', told[0][0], re.MULTILINE)[1]
    assert (tmp_path / 'checkpoints' / step).is_dir()
    assert 'stopped and saved before step 1000000' in told[0][0]


# How they start.


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        ((None, 2, 0), 'set all three'),
        (('localhost:9000', None, 0), 'set all three'),
        (('localhost:9000', 2, 2), '--process=2: expected 0 to 1'),
        (('localhost:9000', 2, -1), '--process=-1: expected 0 to 1'),
        (('localhost:9000', 0, 0), '--processes=0: expected at least 1'),
        (('localhost', 2, 1), "'localhost': expected HOST:PORT"),
        ((':9000', 2, 1), "':9000': expected HOST:PORT"),
        (('localhost:http', 2, 1), "'localhost:http': expected HOST:PORT"),
        (('localhost:65536', 2, 1), "'localhost:65536': expected HOST:PORT"),
        (('auto', 2, None), 'leave them out'),
        (('auto', None, 0), 'leave them out'),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, says):
    with pytest.raises(UserError, match=says) as error:
        sharding.join_processes(*flags)
    assert '\n' not in str(error.value)


def test_a_coordinator_that_never_comes_is_waited_for_so_long_and_no_longer(monkeypatch):
    assert sharding.PATIENCE <= 300  # what docs/scale.md promises
    monkeypatch.setattr(sharding, 'PATIENCE', 1)
    start = time.monotonic()
    with pytest.raises(UserError, match='does not answer within 1 seconds') as error:
        sharding.join_processes(f'localhost:{free_port()}', 2, 1)
    assert 1 < time.monotonic() - start < 5
    assert '\n' not in str(error.value)


def test_a_silent_process_is_declared_dead_in_bounded_time(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        sharding.jax.distributed, 'initialize', lambda *_, **more: asked.update(more)
    )
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    for flags in ((f'localhost:{free_port()}', 2, 0), ('auto', None, None)):
        asked.clear()
        sharding.join_processes(*flags)
        # Measured from the last of the heartbeats; what is left of BOUND is for ending.
        assert asked['heartbeat_timeout_seconds'] <= BOUND - 20
        assert asked['initialization_timeout'] == sharding.PATIENCE


def test_a_port_that_is_taken_is_named():
    with socket.create_server(('', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f'cannot listen on port {port}'):
            sharding.join_processes(f'localhost:{port}', 2, 0)


@pytest.fixture
def no_cluster(monkeypatch):
    """Hides the cluster that these tests may run in."""
    for name in os.environ:
        if name.startswith(('SLURM_', 'KUBERNETES_', 'OMPI_', 'TPU_', 'MEGASCALE_', 'JAX_COORD')):
            monkeypatch.delenv(name)


# Launch files.


def stubbed(tmp_path, program: str, script: str, *args, **variables) -> list[str]:
    """The arguments with which a launch script calls a program that is not here."""
    stub = tmp_path / program
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    environment = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', **variables}
    environment.pop('TFDS_DATA_DIR', None)
    done = subprocess.run(
        ['bash', LAUNCH / script, *args], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def tpu_pod(tmp_path, *args) -> list[str]:
    return stubbed(tmp_path, 'gcloud', 'tpu_pod.sh', *args, NAME='n', ZONE='z', RUN='/a disk/run')


def after_main(words: list[str]) -> list[str]:
    return words[words.index('main.py') + 1 :]


def flags_of(tmp_path, launch: str) -> list[str]:
    """The flags that a launch file gives to main.py."""
    if launch == 'tpu_pod.sh':
        (command,) = (x for x in tpu_pod(tmp_path) if x.startswith('--command='))
        return after_main(shlex.split(command))
    if launch == 'slurm.sbatch':
        return after_main(stubbed(tmp_path, 'srun', launch, RUN='/a disk/run'))
    return after_main(container()['command'])


def job_set() -> dict:
    return yaml.safe_load((LAUNCH / 'gke.yaml').read_text())


def pods() -> dict:
    return job_set()['spec']['replicatedJobs'][0]['template']['spec']


def container() -> dict:
    return pods()['template']['spec']['containers'][0]


@pytest.mark.slow
@pytest.mark.parametrize('launch', sorted(path.name for path in LAUNCH.iterdir()))
def test_main_accepts_the_flags_of_a_launch_file(main, tmp_path, no_cluster, launch):
    flags = flags_of(tmp_path, launch)
    assert '--coordinator=auto' in flags
    (run,) = (Path(flag[10:]) for flag in flags if flag.startswith('--workdir=/'))
    assert f'--config.data.tfds_dir={run.parent / "tfds"}' in flags  # on the same disk
    done = main(*flags, cwd=ROOT)
    # It understands them all, and then misses the cluster.
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith('main.py: --coordinator=auto: this is no cluster'), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_tpu_script_reaches_every_host_and_passes_flags_on(tmp_path):
    words = tpu_pod(tmp_path, '--mode=sample', '--config.seed=1')
    assert words[:5] == ['compute', 'tpus', 'tpu-vm', 'ssh', 'n']
    assert {'--zone=z', '--worker=all'} <= set(words)
    flags = after_main(shlex.split(words[-1]))
    assert flags[-2:] == ['--mode=sample', '--config.seed=1']
    assert '--workdir=/a disk/run' in flags


def test_a_launch_script_says_what_it_misses(tmp_path):
    for script in ('tpu_pod.sh', 'slurm.sbatch'):
        done = subprocess.run(['bash', LAUNCH / script], capture_output=True, text=True)
        assert done.returncode != 0
        assert 'RUN: the folder of the run' in done.stderr


@pytest.mark.parametrize(('code', 'waits'), [(0, False), (1, False), (137, False), (143, True)])
def test_the_slurm_script_waits_to_be_ended_where_the_run_was_stopped(tmp_path, code, waits):
    """SLURM requeues a job that it ends, not one that ended by itself during its grace time."""
    told = '[ "$SRUN_CPUS_PER_TASK" = 8 ] || exit 99'
    for name, does in {
        'srun': f'{told}; exit {code}',
        'sleep': f'echo "$@" >{tmp_path}/slept',
    }.items():
        (tmp_path / name).write_text(f'#!/bin/sh\n{does}\n')
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'RUN': '/run'}
    environment['SLURM_CPUS_PER_TASK'] = '8'
    done = subprocess.run(['bash', LAUNCH / 'slurm.sbatch'], env=environment, check=False)
    assert done.returncode == code
    assert (tmp_path / 'slept').exists() == waits


def detected() -> tuple:
    """What --coordinator=auto finds: coordinator, processes, process, its devices."""
    return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 1)


def test_jax_finds_the_tasks_of_the_slurm_script(monkeypatch, no_cluster):
    lines = (LAUNCH / 'slurm.sbatch').read_text().splitlines()
    options = dict(
        x.split(' --')[1].split('=') for x in lines if x.startswith('#SBATCH') and '=' in x
    )
    nodes, tasks = int(options['nodes']), int(options['ntasks-per-node'])
    assert tasks == int(options['gpus-per-node'])  # each task takes the GPU of its number
    variables = {
        'SLURM_JOB_ID': '4096',
        'SLURM_STEP_NODELIST': 'node[07-08]',
        'SLURM_NTASKS': str(nodes * tasks),
        'SLURM_PROCID': str(tasks + 1),
        'SLURM_LOCALID': '1',
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert detected() == ('node07:61440', nodes * tasks, tasks + 1, [1])


def test_jax_finds_the_pods_of_the_gke_file(monkeypatch, no_cluster):
    spec = pods()
    hosts = spec['parallelism']
    side, other = map(int, node_selector()['cloud.google.com/gke-tpu-topology'].split('x'))
    assert spec['completions'] == hosts
    assert hosts * container()['resources']['limits']['google.com/tpu'] == side * other
    assert job_set()['spec']['failurePolicy']['maxRestarts'] > 0
    variables = {
        'TPU_WORKER_HOSTNAMES': ','.join(['localhost'] * hosts),
        'TPU_WORKER_ID': '2',
        # As in the pods of a single slice; without these, JAX asks Google's metadata server.
        'TPU_SKIP_MDS_QUERY': 'true',
        'MEGASCALE_COORDINATOR_ADDRESS': '',
        'MEGASCALE_NUM_SLICES': '',
        'MEGASCALE_SLICE_ID': '',
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
    coordinator, count, process, _ = detected()
    assert (count, process) == (hosts, 2)
    host, port = coordinator.split(':')
    assert host == 'localhost'
    assert {'containerPort': int(port)} in container()['ports']


def node_selector() -> dict:
    return pods()['template']['spec']['nodeSelector']


if __name__ == '__main__':
    train_and_tell(*sys.argv[1:])
