"""--mode=edit: what a trained model makes of images that it is given."""

import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import latent
from gen_jax.config import nearest, require
from gen_jax.data import fitting, pipeline, sources
from gen_jax.diffusion import solvers, uses
from gen_jax.errors import UserError
from gen_jax.method import Method
from gen_jax.runtime import images, workdir
from gen_jax.runtime.program import Program
from gen_jax.sample import load

MOST_RESULTS = 1000  # of an image; those of image i are samples 1000 i, 1000 i + 1, ...
MASKED = ('inpaint', 'repaint')
# What asks for the noise that images come from; guided, a model finds none that is of its prior.
INVERTED = ('reconstruct', 'interpolate')
PLAIN = {'guidance': 1.0, 'guide': 0.0}
# Where images are known, of the row y and column x of pixels, in a square of `size`.
MASKS = {
    'frame': lambda y, x, size: ~_in_center(y, x, size),
    'center': lambda y, x, size: _in_center(y, x, size),
    'left': lambda y, x, size: x < size / 2,
    'right': lambda y, x, size: x >= size / 2,
    'top': lambda y, x, size: y < size / 2,
    'bottom': lambda y, x, size: y >= size / 2,
    'lines': lambda y, x, size: y % 2 == 0,
    'pixels': lambda y, x, size: (y % 2 == 0) & (x % 2 == 0),
}


def _in_center(y: np.ndarray, x: np.ndarray, size: int) -> np.ndarray:
    """Whether a pixel is of the middle half, in both directions."""
    return (np.abs(2 * y + 1 - size) < size / 2) & (np.abs(2 * x + 1 - size) < size / 2)


def run(config, folder: Path, step: str | None = None) -> None:
    """Writes edit/TASK_STEP.png and .npz of `folder`, by what `config.edit` asks for.

    The picture has a row for each image: itself, what the model was given of it (but for
    interpolate), and the results; for interpolate last the image that they lead to, all told the
    first one's label. The .npz has what `Editing.edited` gives. Result r of image i depends on
    (seed, i, r), the image, the checkpoint and the numbers only.

    Raises:
      UserError: a task that the method has not, numbers out of range, or no images, mask or
        checkpoint.
    """
    method = latent.method(config, guided=True)
    _check(config, method)
    workdir.check(config, folder, after_training=True)
    program = Editing(config, method)
    step, state = load(program, folder, step)
    arrays = program.edited(state)
    if jax.process_index() == 0:
        path = folder / 'edit' / f'{config.edit.task}_{step:08d}.png'
        images.save_png(path, _page(config.edit.task, **arrays))
        partial = path.with_name(f'.{path.stem}.partial.npz')
        np.savez(partial, **arrays)
        os.replace(partial, path.with_suffix('.npz'))
        print(f'{config.edit.task} of {len(arrays["source"])} images: {path} and .npz')


def _check(config, method: Method) -> None:
    edit, able, place = config.edit, method.edits, latent.stage_of(config)
    expected = "'' with --mode=edit: a model of latents knows no images that it could edit"
    require(not place, 'latent.workdir', place, expected)
    if not able:
        raise UserError(
            f'config.method={config.method!r} cannot edit images: it has no edits; a model of '
            'diffusion.gaussian (configs/ddpm_*.py) or diffusion.continuous (edm_*.py) can'
        )
    expected = f'{" or ".join(able)}: the others add noise, {solvers.NO_SCORE}'
    there = edit.task in able or edit.task not in uses.TASKS
    require(there, 'edit.task', edit.task, expected)
    known = f'a task of this method{nearest(edit.task, able)}'
    require(edit.task in able, 'edit.task', edit.task, known)
    require(0 < edit.strength <= 1, 'edit.strength', edit.strength, 'more than 0, to 1')
    require(0 <= edit.eta <= 1, 'edit.eta', edit.eta, '0 to 1')
    for field in ('n', 'results', 'jump', 'repeats'):
        require(edit[field] >= 1, f'edit.{field}', edit[field], 'a whole number of at least 1')
    require(edit.results <= MOST_RESULTS, 'edit.results', edit.results, f'1 to {MOST_RESULTS}')
    channels, colorize = config.data.channels, edit.task == 'colorize'
    expected = f'another: images of config.data.channels={channels} have no colours, 3 have'
    require(channels == 3 or not colorize, 'edit.task', edit.task, expected)
    _check_steps(config)


def _check_steps(config) -> None:
    edit, knobs = config.edit, config.sample.knobs
    steps, name = knobs.steps, config.sampler.name
    expected = (
        "another, such as 'ddim', with sample.knobs.steps of at least 1 and tolerance 0: "
        f'--mode=edit steps by DDIM through as many times as it is told, and {name!r} finds its own'
    )
    require(steps >= 1, 'sampler.name', name, expected)
    expected = f'less than config.sample.knobs.steps={steps}: no step is repeated'
    fits = edit.task != 'repaint' or edit.jump < steps
    require(fits, 'edit.jump', edit.jump, expected)


class Editing(Program):
    """A Program that has an edit for its samples.

    Sample MOST_RESULTS * i + r is result r of image i: [2, h, w, c], what the model was given and
    what it made of it.
    """

    def __init__(self, config, method: Method):
        """Reads the images and the mask, so that what is wrong with them is told at once."""
        edit, knobs = method.edits[config.edit.task], config.sample.knobs
        if config.edit.task in INVERTED and any(knobs.get(x, y) != y for x, y in PLAIN.items()):
            logging.warning('%s goes by the model without guidance', config.edit.task)

        def pair(keys, state, condition):
            return jnp.stack(edit(keys, state, condition), 1)  # [n, 2, h, w, c]

        super().__init__(config, method._replace(sample_step=pair))
        self._masks = {}
        if config.edit.task in MASKED:
            self._masks = {'mask': read_mask(config.edit.mask, config.data.image_size)}
        # Interpolation needs an image to go to.
        more = int(config.edit.task == 'interpolate')
        options = config.edit.images, config.edit.n + more, 1 + more
        self._images, self._labels = read_images(config, 'edit.images', *options, self.num_classes)
        self._rows = len(self._images) - more
        self._results = 1 if config.edit.task == 'reconstruct' else config.edit.results

    def condition(self, indices: np.ndarray) -> dict:
        """What the samples of these indices are asked for: see `Method.edits`."""
        edit, (i, r) = self.config.edit, np.divmod(indices, MOST_RESULTS)
        condition = super().condition(i)
        if self._labels is not None:
            condition['label'] = self._labels[i]
        if edit.task in INVERTED:
            plain = {name: np.full(len(i), x, np.float32) for name, x in PLAIN.items()}
            condition |= {name: plain[name] for name in plain.keys() & condition.keys()}
        condition['image'] = pipeline.to_float(self._images[i])
        for name in ('strength', 'eta', 'jump', 'repeats'):
            dtype = np.int32 if isinstance(edit[name], int) else np.float32
            condition[name] = np.full(len(i), edit[name], dtype)
        for name, mask in self._masks.items():
            condition[name] = np.broadcast_to(mask, (len(i), *mask.shape))
        if edit.task == 'interpolate':
            condition['other'] = pipeline.to_float(self._images[i + 1])
            ends = max(self._results - 1, 1)
            fraction = r / ends if self._results > 1 else np.full(len(i), 0.5)
            condition['fraction'] = fraction.astype(np.float32)
        return condition

    def edited(self, state) -> dict[str, np.ndarray]:
        """All results of n images.

        Returns:
          `source` uint8 [n, h, w, c], `given` and `results` uint8 [n, results, h, w, c]: what the
          model was given of each, and what it made of that; for interpolate also `other` like
          `source`.
        """
        rows, results = self._rows, self._results
        indices = np.arange(rows)[:, None] * MOST_RESULTS + np.arange(results)
        made = self.sample(state, indices.ravel())  # [rows * results, 2, h, w, c]
        made = made.reshape(rows, results, *made.shape[1:])
        arrays = {'source': self._images[:rows], 'given': made[:, :, 0], 'results': made[:, :, 1]}
        if self.config.edit.task == 'interpolate':
            arrays['other'] = self._images[1:]
        return arrays


def _page(task: str, source, given, results, other=None) -> np.ndarray:
    """The picture that `run` writes, uint8 [H, W, c]."""
    columns = [source[:, None], results]
    columns.insert(*((2, other[:, None]) if task == 'interpolate' else (1, given[:, :1])))
    rows = np.concatenate(columns, 1)  # [n, columns, h, w, c]
    return images.grid(rows.reshape(-1, *rows.shape[2:]), rows.shape[1])


def read_images(
    config, field: str, folder: str, most: int, least: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Given images, as `config.data` brings them to one size, and what they show.

    Args:
      config: `data`, and `sample.label` where there are classes: the class that all images show;
        -1: what their source says.
      field: of the config, that names the folder.
      folder: of images; '': those of `data.eval_split`.
      most, least: how many to read, the first ones, and how many there have to be.
      num_classes: what the model, or what guides it, is told of; 0: nothing.

    Returns:
      uint8 [n, h, w, c]; int32 [n] or None, where there are no classes or `sample.label` tells.

    Raises:
      UserError: no such folder, too few images in it, or no labels.
    """
    data, split = config.data.copy_and_resolve_references(), 'train'
    if not folder:
        split = data.eval_split
    elif os.path.isdir(os.path.expanduser(folder)):
        data.source, data.num_classes = f'folder:{folder}', 0
    else:
        raise UserError(f"config.{field}={folder!r} is not a folder: expected one of images, or ''")
    source = sources.open_source(data, split)
    if len(source) < least:
        raise UserError(
            f'{data.source} has fewer than {least} images, which config.{field} needs here'
        )
    examples = [source[i] for i in range(min(most, len(source)))]
    pixels = np.stack([example['image'] for example in examples])
    if not num_classes or config.sample.label != -1:
        return pixels, None
    if source.num_classes == 0:
        raise UserError(
            f'{data.source} does not say which of the {num_classes} classes its images show: set '
            f'config.sample.label to a class below {num_classes}'
        )
    labels = np.array([example['label'] for example in examples], np.int32)
    if not folder:
        return pixels, labels
    return pixels, np.array(_numbers(config.data, source, num_classes), np.int32)[labels]


def _numbers(data, source, num_classes: int) -> list[int]:
    """Which class of the model's each class of a given folder is.

    Args:
      data: of the model.
      source: the folder's.
      num_classes: of the model, or of what guides it.

    Raises:
      UserError: a name that is neither that of a class nor its number.
    """
    known = sources.class_names(data) or ()
    numbers = {str(i): i for i in range(num_classes)} | {x: i for i, x in enumerate(known)}
    for name in source.classes:
        if name not in numbers:
            raise UserError(
                f'{source.folder / name}: {name!r} is none of the {num_classes} classes: name '
                'its folder by the number of one, or set config.sample.label'
                f'{nearest(name, known) if known else ""}'
            )
    return [numbers[name] for name in source.classes]


def read_mask(name: str, size: int) -> np.ndarray:
    """Where an image of `size` pixels a side is known: float32 [size, size, 1], 1 there, else 0.

    Args:
      name: one of MASKS, or an image file; white, 128 of 255 or more, is known.
      size: pixels.

    Raises:
      UserError: no such mask, one of another size, or one that leaves nothing, or all, unknown.
    """
    if name in MASKS:
        known = MASKS[name](*np.mgrid[:size, :size], size)[..., None]
    elif os.path.isfile(path := os.path.expanduser(name)):
        known = fitting.decode(path, f'config.edit.mask={name!r}', 1) >= 128
    else:
        raise UserError(
            f'config.edit.mask={name!r}: expected a PNG file or a known name{nearest(name, MASKS)}'
        )
    h, w, _ = known.shape
    expected = f'a mask of {size}x{size} pixels, as config.data.image_size={size} says'
    require((h, w) == (size, size), 'edit.mask', name, f'{expected}; it has {w}x{h}')
    share = 'all' if known.all() else 'nothing'
    expected = f'a mask that leaves a part unknown and keeps a part; it keeps {share}'
    require(0 < known.sum() < known.size, 'edit.mask', name, expected)
    return known.astype(np.float32)
