"""main.py as a person runs it: in a process of its own, by its flags."""

import importlib.util
import json
import random
import re
import shutil
import signal
import socket
import time
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from gen_jax.config import create
from gen_jax.errors import UserError
from gen_jax.runtime.program import Program

ROOT = Path(__file__).parents[1]
DIGITS = f'--config={ROOT}/configs/ddpm_digits.py:tiny'
VAE = f'--config={ROOT}/configs/vae_fashion_mnist.py:tiny'  # on digits; compiles in seconds
DCGAN = f'--config={ROOT}/configs/dcgan_fashion_mnist.py:tiny'


FINGERPRINT = re.compile('fingerprint ([0-9a-f]{64})')


def fingerprint(done) -> str:
    assert done.returncode == 0, done.stderr
    return FINGERPRINT.search(done.stdout)[1]


def refusal(done) -> str:
    """The one line that a user's mistake ends in."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith('main.py: ')
    return lines[0]


@pytest.mark.slow
def test_help_is_readable_and_short(main):
    done = main('--help')
    assert done.returncode == 0
    assert 'python main.py --mode=sample' in done.stdout
    assert '--workdir' in done.stdout
    assert len(done.stdout.splitlines()) < 40


# Of many a kind; each takes a process of its own.
MISTAKES = [
    (['--mode=trainn'], 'train|sample|evaluate|inspect'),
    (['--config.data.sorce=x'], 'source'),
    (['--config.data.image_size=9'], 'multiple of 2'),
    (['--config.mesh.fsdp=2'], 'there are 1'),
    (['--mode=sample', '--workdir=/no/such/run'], 'train first'),
    (['oops'], "'oops'"),
    ([f'--config={ROOT}/README.md'], 'README.md'),
]
MORE_MISTAKES = [
    (['--config=missing.py'], 'missing.py'),
    ([f'{DIGITS[:-4]}tinny'], "did you mean 'tiny'"),
    (['--config.batchsize=3'], 'batch_size'),
    (['--config.batch_size=many'], "'many'"),
    (['--config.data.channels=3'], 'set config.data.channels=1'),
    (['--config.data.num_classes=9'], 'has 10 classes'),
    (['--config.data.source=digit'], "did you mean 'digits'"),
    (['--config.data.source=folder:/no/such/folder'], '/no/such/folder'),
    (['--config.sampler.name=ddin'], "did you mean 'ddim'"),
    (['--config.batch_size=0'], 'config.batch_size=0'),
    (['--workdir=/proc/nowhere'], '/proc/nowhere'),
    (['--batch=3'], "'batch'"),
    (['--step=3'], '--step'),
    (['--processes=2', '--process=0'], '--coordinator'),
    (['--config.seed=-1'], 'config.seed=-1'),
    (['--config.method=diffusion.unet'], 'is not a method'),
    (['--config.optimizer.decay_steps=50'], 'optimizer.warmup=100'),
    (['--config.optimizer.clip=-1'], 'config.optimizer.clip=-1.0'),
    (['--config.mesh.rules=(1,)'], 'config.mesh.rules'),
    (['--config.init_from=/no/such/weights'], '/no/such/weights/config.json'),
]


@pytest.mark.parametrize(
    ('args', 'says'),
    [*MISTAKES, *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE_MISTAKES)],
)
def test_a_mistake_is_one_line_and_exit_code_2(main, tmp_path, args, says):
    assert says in refusal(main(*args, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_with_a_broken_image_is_named_by_path(main, tmp_path):
    for name in ('a', 'b'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'data' / name / '0.png')
    broken = tmp_path / 'data' / 'b' / '1.png'
    broken.write_bytes((tmp_path / 'data' / 'a' / '0.png').read_bytes()[:40])
    line = refusal(
        main(VAE, f'--config.data.source=folder:{tmp_path}/data', f'--workdir={tmp_path}/run')
    )
    assert str(broken) in line
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_what_is_no_checkpoint_is_told(main, tmp_path):
    folder = tmp_path / 'checkpoints' / '7'
    folder.mkdir(parents=True)
    (folder / 'junk').write_text('no checkpoint')
    done = main(VAE, f'--workdir={tmp_path}')
    assert done.returncode == 2
    told = done.stderr.strip().splitlines()
    assert f'{folder} is damaged' in told[-2]
    assert 'no readable checkpoint' in told[-1]
    assert (folder / 'junk').read_text() == 'no checkpoint'


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(main, tmp_path, small_disk):
    sizes = {'small state': '4', 'state larger than the disk': '64'}
    for name, width in sizes.items():
        run = f'--workdir={small_disk}/{width}'
        args = (VAE, run, '--config.keep=100', f'--config.model.channels={width}')
        done = main(*args, '--config.steps=3000', '--config.log_every=1000')
        assert 'No space left' in refusal(done), name
        for path in (small_disk / width).glob('checkpoints/[1-9]*'):
            assert (path / '_CHECKPOINT_METADATA').exists()
        shutil.rmtree(small_disk / width)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB, where this machine lets us make one."""
    import subprocess

    where = tmp_path / 'disk'
    where.mkdir()
    made = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', str(where)], capture_output=True
    )
    if made.returncode:
        pytest.skip('needs the right to mount a small tmpfs')
    yield where
    subprocess.run(['umount', str(where)], check=True)


# Of methods and networks that others have too, which run: what they compile is made.
PAPERS = (
    'adm_classifier_imagenet',
    'adm_imagenet',
    'biggan_imagenet128',
    'ddpm_cifar10',
    'edm_cifar10',
    'edm_ffhq64',
    'edm_imagenet64',
    'improved_ddpm_cifar10',
    'ncsnv2_cifar10',
    'progan_celebahq1024',
    'rectified_flow_cifar10',
    'score_sde_cifar10',
    'sngan_imagenet128',
    'stylegan2_ffhq1024',
    'stylegan_ffhq1024',
    'vae_sprites',
    'vdvae_cifar10',
    'vq_vae2_256',
)


@pytest.mark.slow
@pytest.mark.usefixtures('compiled_once')
@pytest.mark.parametrize(
    'config', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem
)
def test_every_tiny_config_runs_its_modes(capsys, tmp_path, config):
    """In this process, which is quicker; other tests start main.py."""

    def tiny():
        spec = importlib.util.spec_from_file_location(config.stem, config)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        return module.get_config('tiny')

    def run(mode):
        importlib.import_module(f'gen_jax.{mode}').run(tiny(), tmp_path)
        return capsys.readouterr().out

    if config.stem in PAPERS:
        program = Program(tiny(), create(tiny()), jax.devices())
        assert program.lower_train()
        assert not program.method.sample_step or program.lower_sample()
        return
    trained = FINGERPRINT.search(run('train'))[1]
    if config.stem.startswith(('autoenc', 'classifier', 'first_stage', 'ldm', 'noised', 'vq_vae')):
        with pytest.raises(UserError, match='has no sample_step'):
            run('sample')
    else:
        run('sample')
        assert list((tmp_path / 'samples').glob('step_*.png'))
        assert len(list((tmp_path / 'samples').glob('at_step_*/*.png'))) == 8
    assert FINGERPRINT.search(run('inspect'))[1] == trained
    if 'gan' in config.stem or config.stem.startswith('vae'):
        run('explore')
        assert list((tmp_path / 'explore').glob('interpolate_*.png'))
    run('evaluate')
    report = json.loads((tmp_path / 'metrics.json').read_text())
    assert all(np.isfinite(row['value']) for row in report.values())


@pytest.mark.slow
def test_evaluation_depends_neither_on_devices_nor_on_the_batch_size(main, tmp_path):
    assert main(DIGITS, f'--workdir={tmp_path}').returncode == 0
    reports = []
    for devices, size in ((1, 64), (8, 40)):
        flags = f'--config.sample.batch_size={size}', f'--config.eval.batch_size={size + 10}'
        args = (DIGITS, f'--workdir={tmp_path}', '--mode=evaluate', '--config.eval.n=200', *flags)
        flags = ('--config.eval.metrics=("fid","prdc","accuracy")',)
        done = main(*args, *flags, devices=devices)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / 'metrics.json').read_text()))
        for made in (tmp_path / 'samples').glob('at_step_*'):
            shutil.rmtree(made)
    for name, row in reports[0].items():
        # Another program may round a pixel the other way.
        assert reports[1][name]['value'] == pytest.approx(row['value'], rel=1e-3), name
        assert row['n'] == 200


@pytest.mark.slow
def test_killed_twenty_times_equals_never_stopped(main, tmp_path):
    args = ('--config.steps=1500', '--config.sample_every=0', '--config.log_every=20')
    seldom, often = '--config.checkpoint_every=500', '--config.checkpoint_every=5'
    whole = fingerprint(main(VAE, *args, seldom, f'--workdir={tmp_path}/whole'))
    chance = random.Random(0)
    checkpoints = tmp_path / 'killed' / 'checkpoints'
    for kill in range(20):
        seen = set(checkpoints.glob('*')) if checkpoints.exists() else set()
        process = main(VAE, *args, often, f'--workdir={tmp_path}/killed', wait=False)
        if kill % 5:
            # Once it steps and saves; a save takes a good part of the time.
            while not set(checkpoints.glob('*')) - seen and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5))
        else:
            time.sleep(chance.uniform(0, 5))  # while it starts, compiles or restores
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, 'the run ended before it was killed'
    assert fingerprint(main(VAE, *args, seldom, f'--workdir={tmp_path}/killed')) == whole
    steps = [
        json.loads(line)['step']
        for line in (tmp_path / 'killed' / 'metrics.jsonl').read_text().splitlines()
    ]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_sigterm_saves_and_exits_0_and_the_run_goes_on(main, tmp_path):
    # A GAN: two networks, two optimisers, batch statistics.
    args = ('--config.steps=400', '--config.sample_every=0', '--config.checkpoint_every=1000')
    events = '--config.tensorboard=True'
    whole = fingerprint(main(DCGAN, *args, events, f'--workdir={tmp_path}/whole'))
    assert list((tmp_path / 'whole').glob('events*')) or find_spec('tensorflow') is None
    process = main(DCGAN, *args, f'--workdir={tmp_path}/parts', wait=False)
    metrics = tmp_path / 'parts' / 'metrics.jsonl'
    while not (metrics.exists() and metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert time.monotonic() - asked < 10
    assert 'stopped and saved before step 400' in out
    assert fingerprint(main(DCGAN, *args, f'--workdir={tmp_path}/parts')) == whole


def losses(folder):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [row['loss'] for row in rows if 'loss' in row]  # the others are evaluations


def pictures(folder):
    return np.asarray(Image.open(folder / 'samples' / 'step_00000006.png')).astype(int)


@pytest.mark.slow
def test_devices_and_processes_change_nothing(main, tmp_path):
    args = (DIGITS, '--config.steps=6', '--config.log_every=1', '--config.sample_every=6')
    args += '--config.eval.every=0', '--config.eval.every_metrics=()'
    eight = ('--config.sample.batch_size=8',)

    def run(name, *more, **options):
        done = main(*args, *more, f'--workdir={tmp_path}/{name}', **options)
        assert done.returncode == 0, done.stderr

    run('one')
    run('eight', *eight, devices=8)
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    joined = f'--workdir={tmp_path}/two', f'--coordinator=localhost:{port}', '--processes=2'
    pair = [main(*args, *joined, f'--process={i}', wait=False) for i in range(2)]
    for process in pair:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    for name in ('eight', 'two'):  # other meshes: tests/runtime/test_layouts.py
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / 'one'), rtol=1e-4)
        assert np.abs(pictures(tmp_path / name) - pictures(tmp_path / 'one')).max() <= 1

    # A checkpoint of one device goes on with eight, and back.
    for start, devices in (('one', 8), ('eight', 1)):
        run(start, *(eight if devices == 8 else ()), '--config.steps=8', devices=devices)
        assert len(losses(tmp_path / start)) == 8, start
    np.testing.assert_allclose(losses(tmp_path / 'one'), losses(tmp_path / 'eight'), rtol=1e-4)
