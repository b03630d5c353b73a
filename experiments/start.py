"""How long a run takes to its first training step, with and without compiled programs on disk.

  python experiments/start.py --config=configs/ddpm_cifar10.py --config.data.source=shapes

Arguments go to main.py, which is started with an empty cache, and then again with what that left
there. `reached` is when the first step begins, `done` when its metrics are written: what lies
between is as long as the second step.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import scripts

MAIN = Path(__file__).parents[1] / 'main.py'
WARM = 3  # starts, of which the median counts
FLAGS = ('--config.steps=2', '--config.log_every=1', '--config.sample_every=0')


def start(args: list[str], cache: Path) -> dict[str, float]:
    """Seconds from the start of the process."""
    # In a file: a pipe that nobody reads stops a process that says much.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        metrics = Path(folder, 'metrics.jsonl')
        command = [sys.executable, str(MAIN), *args, *FLAGS, f'--workdir={folder}']
        begun = time.monotonic()
        process = subprocess.Popen(
            command,
            env=scripts.compiled_in(cache),
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.01)
        done = time.monotonic() - begun
        if process.wait() or not metrics.exists():
            said.seek(0)
            sys.stderr.write(said.read().decode())
            sys.exit(process.returncode or 'start.py: main.py has not trained: leave --mode out')
        second = json.loads(metrics.read_text().splitlines()[1])
    return {'reached': done - 1 / second['steps_per_second'], 'done': done}


def main() -> None:
    """Measures and prints."""
    if {'-h', '--help'} & set(sys.argv):
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as cache:
        cold = start(sys.argv[1:], Path(cache))
        starts = [start(sys.argv[1:], Path(cache)) for _ in range(WARM)]
    for name, seconds in cold.items():
        warm = statistics.median(x[name] for x in starts)
        print(f'{name}: cold {seconds:.1f} s, warm {warm:.1f} s, {warm / seconds:.2f} of it')


if __name__ == '__main__':
    main()
