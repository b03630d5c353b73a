"""--mode=explore: what a trained generator or decoder draws where, in the spaces of its latents."""

import os
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.config import create, nearest, require
from gen_jax.data import pipeline
from gen_jax.edit import read_images
from gen_jax.errors import UserError
from gen_jax.latents import directions
from gen_jax.latents.projection import project
from gen_jax.method import UNTRUNCATED
from gen_jax.metrics.features.extract import Extractor, open_extractor
from gen_jax.metrics.path_length import PATHS
from gen_jax.metrics.psnr import psnr
from gen_jax.runtime import images, random, workdir
from gen_jax.runtime.compilation import compiler_options
from gen_jax.runtime.program import Program
from gen_jax.sample import load
from gen_jax.yardsticks import check_names, check_side, open_distance

STYLED = ('mixing', 'principal')  # tasks that need styles
LARGEST = 2.0  # truncation of z where a row of `truncation` ends


def run(config, folder: Path, step: str | None = None) -> None:
    """Writes explore/TASK_STEP.png and .npz of `folder`, by what `config.explore` asks for.

    The latents z_0, z_1, ... depend on the seed only, the picture on these, the checkpoint and the
    numbers. Each .npz has `images` uint8 [rows, columns, h, w, c], and:

    * interpolate (row i leads from z_i to z_{i+1}, told one label) and truncation: `at` [columns],
      where each column is.
    * mixing: image (i, j) has the styles of z_i, but of `explore.layers` those of z_{rows+j}; in
      the picture these stand before the rows and above the columns.
    * project: `source`, `ws`, `distance`, `start_distance` (of the mean of w), what they are,
      `distance_of`, and `psnr`; the picture has each image beside what the generator makes of it.
    * boundary and principal: `directions` [rows or 1, d], of length 1, `at` [columns], in standard
      deviations of w along it, and `mean` [columns], of the attribute; or `explained` [rows], the
      share of w's variance. Boundary's row i begins at z_i, all of principal's at z_0.
    * traverse and map: `numbers` of z, those that change images most around z_0. Traverse has a
      row for each, `at` [columns] and `change`, see `moving`; the rest is z_0's. Map has the first
      one's values `down` [rows], the second's `across` [columns]; the rest is 0.

    Raises:
      UserError: a task that the method has not, numbers out of range, or no checkpoint.
    """
    if jax.process_count() > 1:
        raise UserError('--mode=explore runs in one process: leave --processes out')
    explorer = Explorer(config)
    workdir.check(config, folder, after_training=True)
    step, state = load(explorer, folder, step)
    state = explorer.settled(state)
    task = config.explore.task
    page, arrays, said = TASKS[task](explorer, state)
    path = folder / 'explore' / f'{task}_{step:08d}.png'
    images.save_png(path, page)
    partial = path.with_name(f'.{path.stem}.partial.npz')
    np.savez(partial, **arrays)
    os.replace(partial, path.with_suffix('.npz'))
    print(f'{task}: {path} and .npz{said}')


class Explorer(Program):
    """A Program whose method's latents can be mapped and drawn one by one.

    Attributes:
      options: `config.explore`.
      latents: the method's.
    """

    def __init__(self, config):
        """Opens images and networks, so that what is wrong with them is told at once."""
        method = create(config)
        self.options, self.latents = config.explore, method.latents
        check(config, method)
        super().__init__(config, method)
        placed = jax.tree.map(lambda x: x.sharding, self.state_shape)
        shardings = {
            'in_shardings': (placed, None, None),
            'out_shardings': self._everywhere,
        }
        options = shardings | {'compiler_options': compiler_options(self.mesh)}
        self._mapping = jax.jit(self._whole(self.latents.mapping), **options)
        self._synthesis = jax.jit(self._whole(self.latents.synthesis, spread=True), **options)
        # A program with compiler options has no gradient.
        self._differentiable = jax.jit(self._whole(self.latents.synthesis), **shardings)
        if self.options.task == 'project':
            seen_by = config.eval.perceptual
            check_side(
                config, seen_by, "explore.task='project'", 'choose another config.eval.perceptual'
            )
            self.distance, self.seen_by = open_distance(config.eval)
            place = self.options.images, self.options.rows, 1
            self.given = read_images(config, 'explore.images', *place, self.num_classes)
        if self.options.task == 'boundary':
            self.attribute = attribute(config, self.mesh)

    def z(self, indices: np.ndarray) -> np.ndarray:
        """Standard normal float32 [n, d] of these indices."""
        keys = random.sample_keys(self.config.seed, 'explore', jnp.asarray(indices, jnp.int32))
        draw = jax.vmap(lambda key: jax.random.normal(key, (self.latents.dim,)))
        return np.asarray(draw(keys))

    def mapped(self, state, z: np.ndarray, told: np.ndarray, **knobs) -> np.ndarray:
        """Gives ws [n, layers, d] of z [n, d]; `told` are the indices whose labels they get."""
        condition = self.condition(told) | {k: np.float32(v) for k, v in knobs.items()}
        return jax.device_get(self._mapping(state, *self._put((z, condition))))

    def drawn(self, state, ws: np.ndarray, told: np.ndarray) -> np.ndarray:
        """Images uint8 [n, h, w, c] of ws [n, layers, d], `sample.batch_size` at a time."""
        size, made = self.config.sample.batch_size, []
        for start in range(0, len(ws), size):
            at = np.resize(np.arange(start, min(start + size, len(ws))), size)
            part = self._synthesis(state, *self._put((ws[at], self.condition(told[at]))))
            part = jax.device_get(part)[: len(ws) - start]
            self.require_finite(np.isfinite(part).all((1, 2, 3)))
            made.append(pipeline.to_uint8(part))
        return np.concatenate(made)

    def synthesis(self, state, told: np.ndarray) -> Callable:
        """From ws [n, layers, d] to float images, told the labels of `told`; differentiable."""
        condition = self._put(self.condition(told))
        return lambda ws: self._differentiable(state, ws, condition)

    def rows(self, state, ws: np.ndarray) -> np.ndarray:
        """Images uint8 [rows, columns, h, w, c] of ws [rows, columns, layers, d]."""
        told = np.arange(len(ws)).repeat(ws.shape[1])
        return self.drawn(state, ws.reshape(-1, *ws.shape[2:]), told).reshape(
            *ws.shape[:2], *images_shape(self.config)
        )

    @property
    def untruncated(self) -> dict[str, float]:
        """Knobs with which z, and all of w, are the prior's."""
        knobs = self.config.sample.knobs
        return {name: value for name, value in UNTRUNCATED.items() if name in knobs}

    def samples(self, state) -> tuple[np.ndarray, np.ndarray]:
        """Gives ws [n, layers, d] of `explore.samples` latents, all of w, and their indices."""
        indices = np.arange(self.options.samples)
        return self.mapped(state, self.z(indices), indices, **self.untruncated), indices


def images_shape(config) -> tuple[int, int, int]:
    """(h, w, c)."""
    return config.data.image_size, config.data.image_size, config.data.channels


# --- tasks: (explorer, state) -> the picture, what the .npz has, what is said ---------------------


def interpolate(explorer: Explorer, state) -> tuple:
    """From one latent to the next: along the arc of z, or along the line of w."""
    options, n = explorer.options, explorer.options.rows
    at, told = np.linspace(0, 1, options.columns), np.arange(n)
    ends = [explorer.z(told + i) for i in (0, 1)]
    if options.space == 'z':
        along = [PATHS['slerp'](*ends, np.full((n, 1), t)).astype(np.float32) for t in at]
        ws = [explorer.mapped(state, z, told) for z in along]
    else:
        ends = [explorer.mapped(state, z, told) for z in ends]
        ws = [PATHS['lerp'](*ends, np.float32(t)) for t in at]
    made = explorer.rows(state, np.stack(ws, 1))
    return page(made), {'images': made, 'at': at}, ''


def truncation(explorer: Explorer, state) -> tuple:
    """The same latents, truncated to more and more of the prior."""
    options, knob = explorer.options, explorer.latents.truncation
    steps = np.arange(options.columns)
    # psi from the mean of w on; of the other kind 0 would be none at all.
    at = (
        steps / max(options.columns - 1, 1) if knob == 'psi' else LARGEST * (steps + 1) / len(steps)
    )
    told = np.arange(options.rows)
    z = explorer.z(told)
    ws = [explorer.mapped(state, z, told, **{knob: x}) for x in at]
    made = explorer.rows(state, np.stack(ws, 1))
    return page(made), {'images': made, 'at': at}, f', {knob} from {at[0]:.2g} to {at[-1]:.2g}'


def traverse(explorer: Explorer, state) -> tuple:
    """One number of z after the other, the rest of it as it was (Higgins et al. 2017, figure 1)."""
    options = explorer.options
    expected = f'at most {explorer.latents.dim}, the numbers of z'
    require(options.rows <= explorer.latents.dim, 'explore.rows', options.rows, expected)
    numbers, change = moving(explorer, state)
    numbers, at = numbers[: options.rows], strip(options)
    z = np.tile(explorer.z(np.zeros(1, int)), (len(numbers), len(at), 1))  # [rows, columns, d]
    z[np.arange(len(numbers)), :, numbers] = at
    made = of_one(explorer, state, z)
    arrays = {'images': made, 'numbers': numbers, 'at': at, 'change': change[numbers]}
    return page(made), arrays, f', by numbers {" ".join(map(str, numbers))} of z'


def plane(explorer: Explorer, state) -> tuple:
    """Two numbers of z at equal shares of the prior (Kingma and Welling 2014, appendix A)."""
    options, dim = explorer.options, explorer.latents.dim
    require(dim >= 2, 'explore.task', options.task, 'another task: z is one number')
    numbers, _ = moving(explorer, state)
    rows, columns = (
        np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
        for n in (options.rows, options.columns)
    )
    z = np.zeros((len(rows), len(columns), dim), np.float32)
    z[..., numbers[0]], z[..., numbers[1]] = rows[:, None], columns
    made = of_one(explorer, state, z)
    arrays = {'images': made, 'numbers': numbers[:2], 'down': rows, 'across': columns}
    return page(made), arrays, f', number {numbers[0]} of z down, {numbers[1]} across'


def mixing(explorer: Explorer, state) -> tuple:
    """The styles of one image, in some layers those of another (Karras et al. 2019, figure 3)."""
    options, (n, m) = explorer.options, (explorer.options.rows, explorer.options.columns)
    told = np.arange(n + m)
    ws = explorer.mapped(state, explorer.z(told), told)
    layers = moved_layers(options.layers, ws.shape[1], from_middle=True)
    down, across = ws[:n], ws[n:]
    mixed = np.where(layers[:, None], across[None], down[:, None])  # [n, m, layers, d]
    made, sources = explorer.rows(state, mixed), explorer.drawn(state, ws, told)
    blank = np.full_like(sources[:1], 255)
    whole = np.concatenate([sources[:n, None], made], 1)  # [n, 1 + m, h, w, c]
    top = np.concatenate([blank, sources[n:]])[None]
    return page(np.concatenate([top, whole])), {'images': made, 'sources': sources}, ''


def projection(explorer: Explorer, state) -> tuple:
    """The latents that come nearest to given images (Karras et al. 2020, appendix D)."""
    options, (given, labels) = explorer.options, explorer.given
    # An index is told its remainder as a label: see Program.condition.
    told = np.arange(len(given)) if labels is None else labels
    ws, _ = explorer.samples(state)
    target = jnp.asarray(pipeline.to_float(given))

    def distance(x, y):
        squares = jnp.square(x - y).mean((1, 2, 3))
        return explorer.distance(x, y) + options.pixel_weight * squares

    synthesis = explorer.synthesis(state, told)
    key = random.stream(explorer.config.seed, 'project')
    rule = options.steps, options.learning_rate, options.extended
    found, start, end = project(synthesis, distance, target, ws, key, *rule)
    made = explorer.drawn(state, found, told)
    near = np.asarray(psnr(pipeline.to_float(made), target))
    arrays = {'images': made[:, None], 'source': given, 'ws': found, 'psnr': near}
    arrays |= {'distance': end, 'start_distance': start}
    name = explorer.seen_by['distance']
    arrays['distance_of'] = f'{name} + {options.pixel_weight:g} * squared error'
    said = (
        f', {arrays["distance_of"]} {end.mean():.4f} (of the mean of w {start.mean():.4f}), '
        f'PSNR {near.mean():.1f} dB'
    )
    return page(np.stack([given, made], 1)), arrays, said


def boundary(explorer: Explorer, state) -> tuple:
    """Across the plane that parts an attribute from its absence (Shen et al. 2020)."""
    options, (ws, indices) = explorer.options, explorer.samples(state)
    w = ws[:, 0]  # the same for all layers
    value = explorer.attribute(explorer.drawn(state, ws, indices))
    # Of a class it is the share that a classifier gives it.
    halfway = 0.5 if ':' in options.attribute else np.median(value)
    found = directions.boundary(w, value > halfway)
    scale = float((w @ found.direction).std())
    told = np.arange(options.rows)
    moved, at = strips(options, ws[: options.rows], found.direction[None], scale)
    made = explorer.rows(state, moved)
    mean = explorer.attribute(made.reshape(-1, *made.shape[2:])).reshape(len(told), -1).mean(0)
    arrays = {'images': made, 'directions': found.direction[None], 'at': at, 'mean': mean}
    said = (
        f', parts {found.accuracy:.1%} of {found.n} other samples rightly; {options.attribute} '
        f'goes from {mean[0]:.3f} to {mean[-1]:.3f}'
    )
    return page(made), arrays | {'accuracy': found.accuracy}, said


def principal(explorer: Explorer, state) -> tuple:
    """Along the principal components of w (Härkönen et al. 2020), one a row."""
    options, (ws, _) = explorer.options, explorer.samples(state)
    found, explained, scales = directions.principal(ws[:, 0], options.rows)
    start = ws[:1].repeat(len(found), 0)
    moved, at = strips(options, start, found, scales)
    told = np.zeros(moved.shape[0] * moved.shape[1], int)
    made = explorer.drawn(state, moved.reshape(-1, *ws.shape[1:]), told)
    made = made.reshape(*moved.shape[:2], *made.shape[1:])
    arrays = {'images': made, 'directions': found, 'at': at, 'explained': explained}
    return page(made), arrays, f", {explained.sum():.1%} of w's variance"


TASKS = {
    'interpolate': interpolate,
    'truncation': truncation,
    'traverse': traverse,
    'map': plane,
    'mixing': mixing,
    'project': projection,
    'boundary': boundary,
    'principal': principal,
}


# --- what they are made of -----------------------------------------------------------------------


def page(made: np.ndarray) -> np.ndarray:
    """Images [rows, columns, h, w, c] as one."""
    return images.grid(made.reshape(-1, *made.shape[2:]), made.shape[1])


def strips(options, ws: np.ndarray, found: np.ndarray, scale) -> tuple[np.ndarray, np.ndarray]:
    """Moves ws [rows, layers, d] along directions [rows or 1, d]: [rows, columns, layers, d], at.

    Columns go from -`explore.spread` to it, times `scale` (a number, or one a row).
    """
    at = strip(options)
    layers = moved_layers(options.layers, ws.shape[1])
    far = (at * np.reshape(scale, (-1, 1)))[..., None] * found[:, None]  # [rows or 1, columns, d]
    moved = ws[:, None] + layers[:, None] * far[:, :, None]
    return moved.astype(np.float32), at


def strip(options) -> np.ndarray:
    """Places from -`explore.spread` to it, [columns]."""
    return np.linspace(-options.spread, options.spread, options.columns)


def moving(explorer: Explorer, state) -> tuple[np.ndarray, np.ndarray]:
    """Which numbers of z change images most, the first one first, and by how much each of them.

    Both are [d]; the change is the mean square of pixels' differences, grey levels, between -1 and
    1 with the rest of z as z_0 has it.
    """
    dim = explorer.latents.dim
    z = np.tile(explorer.z(np.zeros(1, int)), (dim, 2, 1))
    z[np.arange(dim), :, np.arange(dim)] = -1, 1
    low, high = of_one(explorer, state, z).astype(np.float64).swapaxes(0, 1)  # [d, h, w, c]
    change = np.square(high - low).mean((1, 2, 3))
    return np.argsort(-change, kind='stable'), change


def of_one(explorer: Explorer, state, z: np.ndarray) -> np.ndarray:
    """Images uint8 [rows, columns, h, w, c] of z [rows, columns, d], all told z_0's label."""
    told = np.zeros(z.shape[0] * z.shape[1], int)
    # For z to be what it is said to be; w may be truncated.
    knobs = {name: x for name, x in explorer.untruncated.items() if name != 'psi'}
    ws = explorer.mapped(state, z.reshape(len(told), -1), told, **knobs)
    made = explorer.drawn(state, ws, told)
    return made.reshape(*z.shape[:2], *made.shape[1:])


def moved_layers(layers: tuple, n: int, from_middle: bool = False) -> np.ndarray:
    """Bool [n], which of n layers `explore.layers` names; (): all, or the latter half."""
    first, beyond = layers or (n // 2 if from_middle else 0, n)
    expected = f'(first, beyond) of the {n} layers, counted from 0'
    require(beyond <= n, 'explore.layers', layers, expected)
    return (np.arange(n) >= first) & (np.arange(n) < beyond)


def attribute(config, mesh) -> Callable:
    """`explore.attribute` of images: uint8 [n, h, w, c] -> float [n], in [0, 1].

    Raises:
      UserError: none of that name, or of a class that the classifier does not know.
    """
    name = config.explore.attribute
    if name == 'brightness':
        return lambda x: x.mean((1, 2, 3)) / 255
    kind, _, number = name.partition(':')
    expected = "'brightness', or 'class:K' with a class K of config.eval.network"
    require(kind == 'class' and number.isdecimal(), 'explore.attribute', name, expected)
    extractor = classifier(config, mesh)
    expected = f'a class from 0 to {extractor.classes - 1}'
    require(int(number) < extractor.classes, 'explore.attribute', name, expected)

    def share(x):
        logits = extractor(x)['logits']
        return np.asarray(jax.nn.softmax(logits))[:, int(number)]

    return share


def classifier(config, mesh) -> Extractor:
    """The classifier `eval.network`, of images as the config's data has them."""
    options = config.eval
    if options.network == 'inception':
        raise UserError(
            f'config.explore.attribute={config.explore.attribute!r} needs a classifier of this '
            'data: set config.eval.network to digits or fashion_mnist'
        )
    look = options.network, options.weights, options.resize, ('logits',), options.dims
    extractor = open_extractor(*look, options.batch_size, mesh, config.data.fit == 'pad')
    extractor.check(images_shape(config))
    return extractor


def check(config, method) -> None:
    """Raises UserError where `config.explore` does not fit itself or the method."""
    options, latents = config.explore, method.latents
    check_names(config.eval, ())
    if latents is None:
        raise UserError(
            f'config.method={config.method!r} has no latents: --mode=explore is for what draws in '
            'one go, gans.adversarial (configs/*gan*.py), autoencoders.vae and '
            'autoencoders.vae_gan (configs/vae*.py)'
        )
    task = options.task
    require(task in TASKS, 'explore.task', task, f'a known task{nearest(task, TASKS)}')
    field = 'network' if 'network' in config else 'method'
    own = f'config.{field}={config[field]!r}'
    expected = f'another task: {own} has no styles, those of stylegan and stylegan2 do'
    fits = latents.styled or task not in STYLED
    require(fits, 'explore.task', task, expected)
    expected = f'another task: of z its direction alone counts to {own}, and planes have all of it'
    require(task != 'map' or not latents.direction, 'explore.task', task, expected)
    expected = f'another task: samples of {own} cannot be truncated'
    fits = bool(latents.truncation) or task != 'truncation'
    require(fits, 'explore.task', task, expected)
    require(options.space in ('z', 'w'), 'explore.space', options.space, "'z' or 'w'")
    for field in ('rows', 'columns', 'steps'):
        expected = 'a whole number of at least 1'
        require(options[field] >= 1, f'explore.{field}', options[field], expected)
    for field in ('spread', 'learning_rate'):
        require(options[field] > 0, f'explore.{field}', options[field], 'a positive number')
    require(options.pixel_weight >= 0, 'explore.pixel_weight', options.pixel_weight, '0 or more')
    least = max(directions.LEAST, options.rows + 1)
    require(options.samples >= least, 'explore.samples', options.samples, f'{least} or more')
    _check_layers(options.layers)


def _check_layers(layers: tuple) -> None:
    good = not layers or (
        len(layers) == 2 and all(isinstance(x, int) for x in layers) and 0 <= layers[0] < layers[1]
    )
    expected = '(first, beyond), such as (0, 4) for the first four layers; or () for the usual'
    require(good, 'explore.layers', layers, expected)
