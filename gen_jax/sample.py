"""--mode=sample: images from a checkpoint, the same ones whatever the batch size and devices."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from gen_jax import guide, latent
from gen_jax.config import guided_by
from gen_jax.data import pipeline, sources
from gen_jax.errors import UserError
from gen_jax.interop import published
from gen_jax.runtime import arrays, images, random, workdir
from gen_jax.runtime.checkpoint import Checkpoints, fingerprint
from gen_jax.runtime.process import as_first_sees
from gen_jax.runtime.program import Program

PART = 256  # images, at least, in a file of a sampling that is under way
WHOLE = 'samples.npz'


def run(config, folder: Path, step: str | None = None) -> None:
    """Writes `config.sample.n` images, and grids, to samples/ of `folder`.

    Image i depends on (seed, i), the checkpoint and the knobs. Stopped and started again, it makes
    the images that are missing.

    Raises:
      UserError: no checkpoint, or samples of other settings in the way.
    """
    program = Program(config, latent.method(config, guided=True))
    if program.method.sample_step is None:
        raise UserError(f'config.method={config.method!r} cannot sample: it has no sample_step')
    workdir.check(config, folder, after_training=True)
    latent_grids = LatentGrids(program)
    step, state = load(program, folder, step)
    out = claimed(config, folder, step, state)
    state = program.settled(state)
    draw, read = {'png': (_draw_pngs, _read_pngs), 'npz': (_draw_npz, _read_npz)}[
        config.sample.format
    ]
    draw(program, state, out)
    pictures = latent_grids(state)
    if jax.process_index() == 0:
        pictures['grid'] = read(out, min(config.sample.grid, config.sample.n))
        for name, made in pictures.items():
            page = images.grid(made, None if name == 'grid' else 8)
            images.save_png(folder / 'samples' / f'{name}_{step:08d}.png', page)
        print(f'{config.sample.n} images in {out}, grids in {folder / "samples"}')


def imported_state(program: Program, source=None):
    """The state with the weights of `config.init_from`, laid out as the program's is.

    Args:
      program: of a config with `init_from`; where it names a guide, the guided model's own state is
        given.
      source: of the training images, of which some tell how far latents spread; None: the config
        tells.

    Raises:
      UserError: the weights are not what the config describes.
    """
    config, shape = program.config, program.state_shape
    latents = latent.stage_of(config)
    inner = latent.of_latents(config) if latents else config
    key = random.stream(config.seed, 'init')
    own = shape.own if latents or guided_by(config) else shape
    state = published.state_of(inner, key)
    state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, own))
    return latent.begun(program, shape.replace(own=state), source, loaded) if latents else state


def load(program: Program, folder: Path, step: str | None = None):
    """(step, state) of a workdir's checkpoint; or of `config.init_from` where it has none.

    Args:
      program: of the workdir's config; where that names a guide, the state has its state too.
      folder: the workdir.
      step: a number; 'best', which `config.eval.best` kept; None takes the newest.
    """
    config, shape = program.config, program.state_shape
    begin = partial(imported_state, program) if config.init_from else None
    if not guided_by(config):
        return loaded(shape, folder, step, '--step', begin)
    step, own = loaded(shape.own, folder, step, '--step', begin)
    return step, shape.replace(own=own, guide=_guiding(config, shape.guide))


def _guiding(config, shape):
    """The state of what `config.guide` names, laid out as `shape` is."""
    if config.guide.config:
        key = random.stream(config.seed, 'guide')
        state = published.state_of(guide.read(config), key)
        return jax.device_put(state, jax.tree.map(lambda x: x.sharding, shape))
    place, step = Path(config.guide.workdir).absolute(), config.guide.step or None
    return loaded(shape, place, step, 'config.guide.step')[1]


def loaded(shape, folder: Path, step: str | None, field: str, begin: Callable | None = None):
    """(step, state) of a run, laid out as `shape` is.

    Args:
      shape: of the state.
      folder: of the run.
      step: as `load` takes it.
      field: that names the step, for errors.
      begin: () -> the state that serves where there are no checkpoints; None: none does.

    Raises:
      UserError: no such checkpoint, or of another state.
    """
    if step not in (None, 'best') and not step.isdecimal():
        raise UserError(f"{field}={step!r}: expected a number, or 'best'")
    place = folder / ('best' if step == 'best' else 'checkpoints')
    if as_first_sees(place.is_dir()):
        with contextlib.closing(Checkpoints(place)) as checkpoints:
            number = int(step) if step and step != 'best' else None
            restored = checkpoints.restore(shape, number)
        if restored is not None:
            return restored[:2]
    if step is None and begin:
        return 0, begin()
    mend = 'train with config.eval.best' if step == 'best' else 'train first'
    raise UserError(f'no checkpoints in {place}: {mend} (--mode=train, same --workdir)')


def claimed(config, folder: Path, step: int, state) -> Path:
    """The folder for a checkpoint's samples, with settings.json in it.

    Raises:
      UserError: it holds images that were made with other settings.
    """
    out = folder / 'samples' / f'at_step_{step:08d}_seed_{config.seed}'
    decides = (
        'sample.label',
        'sample.knobs.',
        'sample.standing',
        'sampler.',
        'diffusion.',
        *(() if step else ('init_from',)),
    )
    settings = {k: v for k, v in workdir.flat(config).items() if k.startswith(decides)}
    if config.sample.get('standing'):  # whose batches are as large as those of training
        settings |= {name: config[name] for name in ('batch_size', 'accumulate')}
    settings |= {'step': step, 'state': fingerprint(state)}
    path = out / 'settings.json'
    have = as_first_sees(workdir.read_json(path) if path.exists() else settings)
    different = [name for name in settings if have.get(name) != settings[name]]
    if different:
        name = different[0]
        raise UserError(
            f'{out} holds samples of other settings ({name} was {have.get(name)!r}, is '
            f'{settings[name]!r}): move it away, or choose another --config.seed'
        )
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        workdir.write_json(path, settings)
    multihost_utils.sync_global_devices('settings written')
    return out


def _draw_pngs(program: Program, state, out: Path) -> None:
    sample = program.config.sample
    missing = [i for i in range(sample.n) if not (out / f'{i:06d}.png').exists()]
    missing = np.array(as_first_sees(missing), int)  # before anyone writes
    if len(missing) < sample.n:
        logging.info('%d of %d images are there already', sample.n - len(missing), sample.n)
    for start in range(0, len(missing), sample.batch_size):
        indices = missing[start : start + sample.batch_size]
        made = program.sample(state, indices)
        if jax.process_index() == 0:
            for i, image in zip(indices, made, strict=True):
                images.save_png(out / f'{i:06d}.png', image)


def _read_pngs(out: Path, n: int) -> np.ndarray:
    return np.stack([images.read_png(out / f'{i:06d}.png') for i in range(n)])


def stored(program: Program, state, out: Path, n: int) -> Iterator[np.ndarray]:
    """Images 0 .. n-1 in order, as they lie in `out`; those that are missing are drawn.

    They lie in samples.npz, or in parts named by the indices they hold, of whichever lengths
    earlier runs wrote. Every process gets all of them, and needs to see the same folder.

    Yields:
      uint8 [b, h, w, c].
    """
    # Before anyone writes.
    whole, parts = as_first_sees((min(n, _in_whole(out)), _parts(out)))
    if jax.process_index() == 0:
        for left in out.glob('.*.partial.npy'):  # by a run that was killed
            left.unlink()
    # Whole batches: what a killed run loses is little more than the one at hand.
    size = program.config.sample.batch_size
    chunk = size * -(-PART // size)
    if whole:
        yield from arrays.rows(out / WHOLE, 'images', whole, chunk)
    done = whole
    while done < n:
        held = next(((a, b) for a, b in parts if a <= done < b), None)
        if held:
            made = np.load(out / f'part_{held[0]}_{held[1]}.npy')[done - held[0] : n - held[0]]
        else:
            stop = min([n, done + chunk, *(a for a, _ in parts if a > done)])
            made = program.sample(state, np.arange(done, stop))
            if jax.process_index() == 0:
                partial = out / f'.{done}_{stop}.partial.npy'
                np.save(partial, made)
                os.replace(partial, out / f'part_{done}_{stop}.npy')
        yield made
        done += len(made)


def _parts(out: Path) -> list[tuple[int, int]]:
    """(first index, last index + 1) of every part."""
    found = (re.fullmatch(r'part_(\d+)_(\d+)\.npy', path.name) for path in out.glob('part_*'))
    return sorted((int(match[1]), int(match[2])) for match in found if match)


def _in_whole(out: Path) -> int:
    """How many images samples.npz has; 0 where there is none."""
    if not (out / WHOLE).exists():
        return 0
    with arrays.telling(out / WHOLE), arrays.opened(out / WHOLE, 'images') as (file, _):
        return arrays.header(file)[0][0]


def _draw_npz(program: Program, state, out: Path) -> None:
    """One file `samples.npz` with `images` uint8 [n, h, w, c], and `label` where there are any.

    Until all are there they lie in parts, named by the indices they hold. More than n stay.
    """
    n = program.config.sample.n
    if as_first_sees(_in_whole(out)) >= n:
        return
    made, condition = stored(program, state, out, n), program.condition(np.arange(n))
    labels = {name: condition[name] for name in condition.keys() & {'label'}}
    if jax.process_index() == 0:
        arrays.write_npz(out / WHOLE, 'images', n, made, **labels)
    for _ in made:  # drawn by all processes
        pass
    multihost_utils.sync_global_devices('all parts read')
    if jax.process_index() == 0:
        for first, end in _parts(out):
            if end <= n:
                (out / f'part_{first}_{end}.npy').unlink()


def _read_npz(out: Path, n: int) -> np.ndarray:
    return np.concatenate(list(arrays.rows(out / WHOLE, 'images', n, n)))


class LatentGrids:
    """What a method with `encode` and `decode` can show of 16 images of the eval split."""

    def __init__(self, program: Program):
        """Reads the images, so that a split that is not there is told before training."""
        self._program = program
        self._real = None
        if program.method.encode is not None and program.method.decode is not None:
            data = program.config.data
            source = sources.open_source(data, data.eval_split)
            self._real = program.given(sources.read(source, np.arange(16) % len(source)))

    def __call__(self, state) -> dict[str, np.ndarray]:
        """The grids, {} for other methods.

        Returns:
          'reconstruction': rows of 8 images, each row followed by its reconstructions;
          'interpolation': 8 rows, each from one image to another in equal steps of the latent;
          uint8 [n, h, w, c].
        """
        if self._real is None:
            return {}
        batch, program = self._real, self._program
        real, label = pipeline.to_uint8(batch['image']), batch.get('label')
        latents = program.encode(state, batch)
        steps = np.linspace(0.0, 1.0, 8, dtype=latents.dtype)
        path = [
            a + s * (b - a) for a, b in zip(latents[:8], latents[8:], strict=True) for s in steps
        ]
        along = label if label is None else label[:8].repeat(8)  # the class of each row's first
        back = pipeline.to_uint8(program.decode(state, latents, label))
        rows = np.concatenate([real[:8], back[:8], real[8:], back[8:]])
        return {
            'reconstruction': rows,
            'interpolation': pipeline.to_uint8(program.decode(state, np.stack(path), along)),
        }
