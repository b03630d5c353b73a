"""A function in a process of its own: what it returns, refuses, and how it is ended."""

import logging
import math
import signal
import subprocess
import sys

import pytest

from gen_jax.config import default
from gen_jax.errors import UserError
from gen_jax.runtime import process, topology

pytestmark = pytest.mark.slow  # each process imports JAX


def test_what_it_returns_comes_back():
    config = default('autoencoders.vae').lock()
    back, where = process.apart(tuple, [config, topology.parse('v4:2x2x1')[0]])
    assert back == config
    assert where == topology.parse('v4:2x2x1')[0]


def test_its_lines_are_told_and_a_refusal_is_raised_here(capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), 'level', logging.INFO)
    assert process.apart(logging.info, 'as it is') is None
    assert capfd.readouterr().err == 'as it is\n'
    with pytest.raises(UserError, match='of no known TPU'):
        process.apart(topology.parse, 'v9:2x2')


@pytest.mark.parametrize('name', ['SIGSEGV', 'SIGABRT'])
def test_libtpus_fault_is_one_line(name):
    with pytest.raises(UserError, match=f'^libtpu ends in {name}$'):
        process.apart(signal.raise_signal, signal.Signals[name])


MUCH = """
import subprocess, sys
kept = bytes(range(256)) * 2**21  # half a GiB
asked = (
    'from gen_jax.runtime.process import resident; print(resident("VmRSS"), resident("VmHWM"))'
)
subprocess.run([sys.executable, '-c', asked])
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='as Linux counts')
def test_the_most_memory_is_the_process_own_and_not_its_parents():
    done = subprocess.run([sys.executable, '-c', MUCH], capture_output=True, text=True, check=True)
    now, most = map(int, done.stdout.split())
    assert now <= most < 2**29
    assert process.resident('VmNothing') is None


def test_another_end_is_no_refusal(capfd):
    with pytest.raises(UserError, match=r'^raise_signal was killed, as where memory runs out$'):
        process.apart(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match='raise_signal ended with exit code -15'):
        process.apart(signal.raise_signal, signal.SIGTERM)
    with pytest.raises(ChildProcessError, match='sqrt ended with exit code 1'):
        process.apart(math.sqrt, -1)
    assert capfd.readouterr().err.endswith('math domain error\n')
