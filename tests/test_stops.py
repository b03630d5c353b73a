"""Runs that are killed, stopped, moved to other devices or cut into processes, by main.py."""

import json
import random
import re
import shutil
import signal
import socket
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
VAE = f'--config={ROOT}/configs/vae_fashion_mnist.py:tiny'  # on digits; compiles in seconds
DCGAN = f'--config={ROOT}/configs/dcgan_fashion_mnist.py:tiny'
FINGERPRINT = re.compile('fingerprint ([0-9a-f]{64})')


def fingerprint(done) -> str:
    assert done.returncode == 0, done.stderr
    return FINGERPRINT.search(done.stdout)[1]


@pytest.mark.slow
def test_evaluation_depends_neither_on_devices_nor_on_the_batch_size(main, tmp_path):
    assert main(VAE, f'--workdir={tmp_path}').returncode == 0
    reports = []
    for devices, size in ((1, 64), (8, 40)):
        flags = f'--config.sample.batch_size={size}', f'--config.eval.batch_size={size + 10}'
        args = (VAE, f'--workdir={tmp_path}', '--mode=evaluate', '--config.eval.n=200', *flags)
        flags = ('--config.eval.metrics=("fid","prdc")',)
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
    args = (VAE, '--config.steps=6', '--config.log_every=1', '--config.sample_every=6')
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
