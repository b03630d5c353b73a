"""The studies, on configs of seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
def test_recognised_judges_samples_by_class(main, tmp_path):
    assert main(DIGITS, f'--workdir={tmp_path}').returncode == 0
    out = study('recognised.py', DIGITS, f'--workdir={tmp_path}', '--n=40')
    report = json.loads((tmp_path / 'recognised.json').read_text())
    assert report['accuracy_on_real_test'] > 0.95
    # Four steps of training draw noise: about a tenth is named by chance.
    assert report['recognised'] < 0.5
    assert sum(report['share_per_class']) == pytest.approx(1, abs=1e-3)
    assert len(report['recognised_per_class']) == 10
    assert f'recognised: {report["recognised"]}' in out


@pytest.mark.slow
def test_rates_are_measured():
    out = study('rates.py', DIGITS, '--batches=5', '--repeats=2')
    for line in ('loader alone:', 'training:', 'loader / training:', 'sampling:'):
        assert line in out
