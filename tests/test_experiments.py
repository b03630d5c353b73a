"""The studies, on configs of seconds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gen_jax.metrics.features import classifier

ROOT = Path(__file__).parents[1]
DIGITS = f'--config={ROOT}/configs/ddpm_digits.py:tiny'


def study(name, *args):
    command = [sys.executable, str(ROOT / 'experiments' / name), *args]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_classifier_is_shipped_with_the_accuracy_of_its_run(main, tmp_path):
    config = f'--config={ROOT}/configs/classifier_digits.py:tiny'
    assert main(config, f'--workdir={tmp_path}').returncode == 0
    file = tmp_path / 'mine.safetensors'
    study('ship_classifier.py', config, f'--workdir={tmp_path}', f'--out={file}')
    assert main(config, f'--workdir={tmp_path}', '--mode=evaluate').returncode == 0
    accuracy = json.loads((tmp_path / 'metrics.json').read_text())['accuracy']['value']
    assert classifier.load(str(file))[2]['accuracy'] == pytest.approx(accuracy)


@pytest.mark.slow
def test_rates_are_measured():
    out = study('rates.py', DIGITS, '--batches=5', '--repeats=2')
    for line in ('loader alone:', 'training:', 'loader / training:', 'sampling:'):
        assert line in out


@pytest.mark.slow
def test_a_start_is_measured_cold_and_warm():
    out = study('start.py', DIGITS)
    found = [float(x) for x in re.findall(r'(?:cold|warm) ([\d.]+) s', out)]
    (cold, warm), (cold_done, warm_done) = found[:2], found[2:]
    # As printed, with one digit after the point.
    assert 0 < warm < cold <= cold_done
    assert warm <= warm_done < cold_done


@pytest.mark.slow
def test_throughput_compares_the_same_network(tmp_path):
    pytest.importorskip('diffusers')
    out = tmp_path / 'throughput.json'
    few = ('--turns=1', '--sampling_turns=1', '--steps=2', '--batch_size=2')
    study('throughput.py', '--variant=tiny', '--nocompile', *few, f'--out={out}')
    found = json.loads(out.read_text())
    assert set(found['largest_difference_of_scale']) == {'eager', 'channels_last'}
    assert max(found['largest_difference_of_scale'].values()) < 1e-4
    for task in ('forward', 'sampling', 'training'):
        assert all(row['ratio'] > 0 for row in found[task]['over'].values())
    assert 0 < found['memory']['warm_bytes'] < 1.5 * found['memory']['cold_bytes']
    assert '| training |' in out.with_suffix('.md').read_text()
