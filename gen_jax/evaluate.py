"""--mode=evaluate: what `evaluate_step` says of every example of the eval split."""

from pathlib import Path

import jax
import numpy as np

from gen_jax import __version__
from gen_jax.config import create
from gen_jax.data import pipeline, sources
from gen_jax.errors import UserError
from gen_jax.runtime import workdir
from gen_jax.runtime.program import Program
from gen_jax.sample import load


def run(config, folder: Path, step: int | None = None) -> None:
    """Writes metrics.json: the mean of each number over the eval split, with its standard error.

    Raises:
      UserError: the method has no evaluate_step, or there is no checkpoint.
    """
    program = Program(config, create(config))
    if program.method.evaluate_step is None:
        raise UserError(
            f'config.method={config.method!r} has no evaluate_step; methods with one: '
            'autoencoders.vae, diffusion.gaussian'
        )
    workdir.check(config, folder, after_training=True)
    source = sources.open_source(config.data, config.data.eval_split)
    step, state = load(program, folder, step)
    columns: dict[str, list] = {}
    done = 0
    for batch in pipeline.evaluation_batches(config, source, config.batch_size, *program.reader):
        batch = program.to_global(batch)
        indices = np.arange(done, done + config.batch_size, dtype=np.int32)
        real = min(config.batch_size, len(source) - done)
        for name, values in program.evaluate(state, indices, batch).items():
            columns.setdefault(name, []).append(values[:real])
        done += real
    provenance = {
        'data': f'{config.data.source} {config.data.eval_split}',
        'step': step,
        'seed': config.seed,
        'init_from': config.init_from,
        'sampler': workdir.plain(config.get('sampler', {})),
        'gen_jax': __version__,
    }
    report = {}
    for name, parts in columns.items():
        values = np.concatenate(parts).astype(np.float64)
        n = len(values)
        error = values.std(ddof=1) / np.sqrt(n)
        report[name] = {'value': values.mean(), 'standard_error': error, 'n': n, **provenance}
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        workdir.write_json(folder / 'metrics.json', report)
        for name, row in report.items():
            print(f'{name} {row["value"]:.6g} +- {row["standard_error"]:.2g} ({row["n"]} images)')
