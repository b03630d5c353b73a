"""--mode=sample: images from a checkpoint, the same ones whatever the batch size and devices."""

import contextlib
import json
import logging
import os
from pathlib import Path

import jax
import numpy as np

from gen_jax.config import create
from gen_jax.data import pipeline, sources
from gen_jax.errors import UserError
from gen_jax.interop import diffusers_ddpm
from gen_jax.runtime import images, workdir
from gen_jax.runtime.checkpoint import Checkpoints
from gen_jax.runtime.program import Program


def run(config, folder: Path, step: int | None = None) -> None:
    """Writes `config.sample.n` images, and grids, to samples/ of `folder`.

    Image i depends on (seed, i), the checkpoint and the knobs. Stopped and started again, it makes
    the images that are missing.

    Raises:
      UserError: no checkpoint, or samples of other settings in the way.
    """
    program = Program(config, create(config), pipeline.batch_spec(config))
    if program.method.sample_step is None:
        raise UserError(f'config.method={config.method!r} cannot sample: it has no sample_step')
    workdir.check(config, folder)
    step, state = load(program, folder, step)
    out = folder / 'samples' / f'at_step_{step:08d}_seed_{config.seed}'
    _claim(out, config, step)
    if config.sample.format == 'png':
        _draw_pngs(program, state, out)
    else:
        _draw_npz(program, state, out)
    pictures = {'grid': program.sample(state, np.arange(min(config.sample.grid, config.sample.n)))}
    pictures |= latent_grids(program, state)
    if jax.process_index() == 0:
        for name, made in pictures.items():
            page = images.grid(made, None if name == 'grid' else 8)
            images.save_png(folder / 'samples' / f'{name}_{step:08d}.png', page)
        print(f'{config.sample.n} images in {out}, grids in {folder / "samples"}')


def initial_state(program: Program):
    """The state that training starts from: random, or with the weights of `config.init_from`."""
    config = program.config
    if not config.init_from:
        return program.init()
    if config.method != 'diffusion.gaussian':
        raise UserError(
            f'config.init_from={config.init_from!r} is for diffusion.gaussian (a diffusers DDPM '
            f"folder): config.method={config.method!r} starts from ''"
        )
    state = diffusers_ddpm.gaussian_state(config, config.init_from)
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding, program.state_shape))


def load(program: Program, folder: Path, step: int | None = None):
    """(step, state) of a workdir's checkpoint; or of `config.init_from` where it has none."""
    if program.config.init_from and not (folder / 'checkpoints').exists():
        return 0, initial_state(program)
    with contextlib.closing(Checkpoints(folder / 'checkpoints')) as checkpoints:
        restored = checkpoints.restore(program.state_shape, step)
    if restored is None:
        raise UserError(f'no checkpoint in {folder / "checkpoints"}: train first (--mode=train)')
    return restored[:2]


def _claim(out: Path, config, step: int) -> None:
    """Refuses a folder whose images were made with other settings."""
    settings = workdir.flat(config)
    settings = {
        name: value
        for name, value in settings.items()
        if name == 'sample.label' or name.startswith(('sample.knobs.', 'sampler.'))
    } | {'step': step}
    path = out / 'settings.json'
    if path.exists():
        have = json.loads(path.read_text())
        different = [name for name in settings if have.get(name) != settings[name]]
        if different:
            name = different[0]
            raise UserError(
                f'{out} holds samples of other settings ({name} was {have.get(name)!r}, is '
                f'{settings[name]!r}): move it away, or choose another --config.seed'
            )
    elif jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1) + '\n')


def _draw_pngs(program: Program, state, out: Path) -> None:
    sample = program.config.sample
    wanted = np.arange(sample.n)
    missing = np.array([i for i in wanted if not (out / f'{i:06d}.png').exists()], int)
    if len(missing) < sample.n:
        logging.info('%d of %d images are there already', sample.n - len(missing), sample.n)
    for start in range(0, len(missing), sample.batch_size):
        indices = missing[start : start + sample.batch_size]
        made = program.sample(state, indices)
        if jax.process_index() == 0:
            for i, image in zip(indices, made, strict=True):
                images.save_png(out / f'{i:06d}.png', image)


def _draw_npz(program: Program, state, out: Path) -> None:
    """One file `samples.npz` with `images` uint8 [n, h, w, c], and `label` where there are any.

    Until all are there they lie in parts, named by the indices they hold.
    """
    sample = program.config.sample
    for start in range(0, sample.n, sample.batch_size):
        end = min(start + sample.batch_size, sample.n)
        part = out / f'part_{start}_{end}.npy'
        if not part.exists():
            made = program.sample(state, np.arange(start, end))
            if jax.process_index() == 0:
                partial = part.with_suffix('.partial.npy')
                np.save(partial, made)
                os.replace(partial, part)
    if jax.process_index() == 0:
        spans = [
            (start, min(start + sample.batch_size, sample.n))
            for start in range(0, sample.n, sample.batch_size)
        ]
        parts = [out / f'part_{start}_{end}.npy' for start, end in spans]
        arrays = {'images': np.concatenate([np.load(part) for part in parts])}
        condition = program.condition(np.arange(sample.n))
        if 'label' in condition:
            arrays['label'] = condition['label']
        np.savez(out / 'samples.partial.npz', **arrays)
        os.replace(out / 'samples.partial.npz', out / 'samples.npz')
        for part in parts:
            part.unlink()


def latent_grids(program: Program, state) -> dict[str, np.ndarray]:
    """What a method with `encode` and `decode` can show of the first images of the eval split.

    Returns:
      {'reconstruction': rows of 8 images, each followed by its row of reconstructions,
      'interpolation': 8 rows, from one image to the next in equal steps of its latent}, uint8.
    """
    method, data = program.method, program.config.data
    if method.encode is None or method.decode is None:
        return {}
    source = sources.open_source(data, data.eval_split)
    real = np.stack([source[i % len(source)]['image'] for i in range(16)])
    batch = {'image': pipeline.to_float(real)}
    means = jax.jit(method.encode)(state, batch)
    decode = jax.jit(lambda state, z: method.decode(state, z, {}))
    back = pipeline.to_uint8(np.asarray(decode(state, means)))
    rows = [real[:8], back[:8], real[8:], back[8:]]
    means = np.asarray(means)
    steps = np.linspace(0.0, 1.0, 8, dtype=means.dtype)
    between = [a + s * (b - a) for a, b in zip(means[:8], means[8:], strict=True) for s in steps]
    path = pipeline.to_uint8(np.asarray(decode(state, np.stack(between))))
    return {'reconstruction': np.concatenate(rows), 'interpolation': path}
