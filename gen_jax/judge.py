"""What `config.eval` asks of a model: which numbers, seen through what, compared with what.

The modes evaluate and train ask the same questions. Every answer carries its provenance.
"""

import functools
import logging
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import numpy as np

from gen_jax import __version__
from gen_jax.config import nearest
from gen_jax.data import pipeline, sources
from gen_jax.errors import UserError
from gen_jax.interop.weights import find, sha256
from gen_jax.metrics import compare, lpips, path_length, sets
from gen_jax.metrics.accuracy import accuracy
from gen_jax.metrics.diversity import dissimilarity, diversity
from gen_jax.metrics.features.extract import open_extractor
from gen_jax.metrics.modes import by_classifier
from gen_jax.metrics.psnr import psnr
from gen_jax.metrics.ssim import ssim
from gen_jax.runtime import random, workdir
from gen_jax.runtime.program import Program

# What a classifier says of samples, beside what `compare` knows.
CLASSIFIER = ('accuracy', 'modes')
# What looks at samples through no network of `eval.network`.
PERCEPTUAL = ('diversity', 'path_length', 'reconstruction')
METRICS = ('per_example', *compare.ROLE, *CLASSIFIER, *PERCEPTUAL)
# Fields of Method; the others need `sample_step`.
NEEDS = {
    'per_example': ('evaluate_step',),
    'path_length': ('decode', 'latent_dim'),
    'reconstruction': ('encode', 'decode'),
}
# What kind of number a method's bits per dimension are (see `metrics.bits_per_dim`).
BITS = {'vlb_bits_per_dim': {'kind': 'bound', 'likelihood': 'discrete'}}
CHUNK = 500  # images of a data set read at a time
DIVERSE, PAIRS = 500, 1000  # images that diversity looks at, and pairs of them
COLLAPSED = 0.5  # diversity over that of real images, below which a warning is given


def check(program: Program, names: Iterable[str]) -> None:
    """Raises UserError where the method, the data or the network cannot give a metric."""
    config = program.config
    if not names:
        raise UserError(f'no metric in config.eval.metrics: name some of {", ".join(METRICS)}')
    for name in names:
        if name not in METRICS:
            raise UserError(f'config.eval.metrics: no metric {name!r}{nearest(name, METRICS)}')
        for field in NEEDS.get(name, ('sample_step',)):
            if getattr(program.method, field) is None:
                raise UserError(
                    f'config.method={config.method!r} has no {field}, which metric {name!r} '
                    'needs: leave it out of config.eval.metrics'
                )
        if name in CLASSIFIER and config.eval.network == 'inception':
            raise UserError(
                f'metric {name!r} needs a classifier of this data: set config.eval.network to '
                f'digits or fashion_mnist, or leave {name!r} out of config.eval.metrics'
            )
        if name == 'accuracy' and not config.data.num_classes:
            raise UserError(
                "metric 'accuracy' needs samples of a class: set config.data.num_classes, or "
                "leave it out of config.eval.metrics ('modes' needs none)"
            )
        if name in ('is', 'sfid') and config.eval.dims != 2048:
            raise UserError(
                f'config.eval.dims={config.eval.dims} concerns neither is nor sfid: leave {name!r} '
                'out of config.eval.metrics, or set it to 2048'
            )
        if name == 'path_length' and config.eval.perceptual != 'vgg':
            raise UserError(
                "metric 'path_length' is measured by LPIPS over VGG-16: set "
                f"config.eval.perceptual to 'vgg', which is {config.eval.perceptual!r}"
            )


class Judge:
    """What `config.eval` asks, opened once and asked at any step.

    Attributes:
      of_samples: the metrics that look at samples.
    """

    def __init__(self, program: Program, names: Iterable[str]):
        """Opens networks and reference sets, so that what is missing is told beforehand."""
        check(program, names)
        self._program, self._names = program, tuple(names)
        self._compared = tuple(name for name in names if name in compare.ROLE)
        self.of_samples = tuple(
            name for name in names if NEEDS.get(name, ('sample_step',)) == ('sample_step',)
        )
        config, options = program.config, program.config.eval
        self._keep = ('logits',) if {*CLASSIFIER} & {*names} else ()
        if self._compared or self._keep:
            roles = tuple(dict.fromkeys([*compare.roles(self._compared), *self._keep]))
            look = options.network, options.weights, options.resize, roles, options.dims
            self._extractor = open_extractor(*look, options.batch_size, program.mesh)
            self._reference = Reference(config, [x for x in self._compared if x != 'is'])
        if {*PERCEPTUAL} & {*names}:
            self._distance, self._seen_by = open_distance(options)
            self._real_images = sources.open_source(config.data, config.data.eval_split)

    def __call__(self, step: int, state, images: Iterable[np.ndarray]) -> dict[str, dict]:
        """The numbers of a state, {name: {value, spread, n, ...}} with the provenance of each.

        Args:
          step: what the state is called.
          state: the method's.
          images: its samples 0, 1, ..., as batches uint8 [b, h, w, c]; not touched where nothing
            looks at samples.
        """
        rows = {}
        if 'per_example' in self._names:
            rows |= per_example(self._program, state)
        if 'reconstruction' in self._names:
            rows |= self._reconstruction(state)
        if 'path_length' in self._names:
            rows |= self._path_length(state)
        if self.of_samples:
            rows |= self._samples(images)
        shared = provenance(self._program.config, step)
        return {name: {**row, **shared} for name, row in rows.items()}

    def given(self) -> list[str]:
        """The names of the numbers that `__call__` gives."""
        measures = ('psnr', 'ssim') + (('lpips',) if self._perceptual != 'ssim' else ())
        several = {
            'per_example': self._program.evaluated() if 'per_example' in self._names else (),
            'diversity': (f'diversity_{self._perceptual}',),
            'reconstruction': tuple(f'reconstruction_{measure}' for measure in measures),
        }
        names = []
        for name in self._names:
            suffix = self._extractor.suffix if name in (*self._compared, *CLASSIFIER) else ''
            found = several.get(name) or compare.GIVES.get(name, (name,))
            names += [x + suffix for x in found]
        return names

    @property
    def _perceptual(self) -> str:
        return self._program.config.eval.perceptual

    def _samples(self, images: Iterable[np.ndarray]) -> dict[str, dict]:
        rows, first = {}, []
        if 'diversity' in self._names:
            images = _keeping(images, first, DIVERSE)
        if self._compared or self._keep:
            rows |= self._seen_through_network(images)
        for _ in images:  # what is left for `first`, where nothing else looked
            pass
        if first:
            rows |= self._diversity(np.concatenate(first))
        return rows

    def _seen_through_network(self, images: Iterable[np.ndarray]) -> dict[str, dict]:
        real = self._real  # before samples are drawn, which may take hours
        seen = compare.look(images, self._extractor, self._compared, self._keep)
        suffix = self._extractor.suffix
        rows = compare.compare(real, seen, self._compared, suffix=suffix)
        for name, floor in self._floor.items():
            rows[name] |= {'floor': floor['value'], 'floor_n': floor['n']}
        if self._keep:
            rows |= {k + suffix: v for k, v in self._classes(seen.features['logits']).items()}
        shared = {**self._extractor.provenance, 'reference': self._reference.name}
        return {name: {**row, **shared} for name, row in rows.items()}

    @functools.cached_property
    def _real(self) -> compare.Seen:
        return self._reference.look(self._extractor)

    @functools.cached_property
    def _floor(self) -> dict[str, dict]:
        """What the eval split's real images get: the least that samples can hope for."""
        held_out = self._reference.held_out
        if held_out is None or not self._compared:
            return {}
        floor = compare.look(images_of(held_out), self._extractor, self._compared)
        return compare.compare(self._real, floor, self._compared, suffix=self._extractor.suffix)

    def _classes(self, logits: np.ndarray) -> dict[str, dict]:
        rows, n = {}, len(logits)
        if 'accuracy' in self._names:
            found = accuracy(logits, self._program.condition(np.arange(n))['label'])
            rows['accuracy'] = {
                **found.overall._asdict(),
                'per_class': {k: v.value for k, v in found.per_class.items()},
                'worst_class': found.worst_class,
            }
        if 'modes' in self._names:
            found = by_classifier(logits, logits.shape[1], self._reference.class_counts)
            rows['modes'] = {'value': found.found, 'n': n, **found._asdict()}
        return rows

    def _diversity(self, images: np.ndarray) -> dict[str, dict]:
        measure = functools.partial(diversity, distance=self._distance, pairs=PAIRS)
        real = next(images_of(self._real_images, DIVERSE))
        of_real = measure(pipeline.to_float(real))['diversity']
        found = measure(pipeline.to_float(images), reference=of_real)
        row = {'value': found['diversity'], 'n': len(images), 'pairs': PAIRS, **self._seen_by}
        row |= {'real': of_real, 'real_n': len(real), 'ratio': found['diversity_ratio']}
        if row['ratio'] < COLLAPSED:
            logging.warning(
                'samples are %.0f%% as diverse as real images: the model seems to have collapsed '
                'to few images; look at the grids, and at an earlier checkpoint (--step)',
                100 * row['ratio'],
            )
        return {f'diversity_{self._perceptual}': row}

    def _path_length(self, state) -> dict[str, dict]:
        program, n = self._program, self._program.config.eval.n
        key = random.stream(program.config.seed, 'path_length')
        ends = path_length.draw(key, n, program.method.latent_dim)
        found = path_length.path_length(
            lambda latents, index: program.decode(state, latents), self._distance, *ends
        )
        row = {'value': found['path_length'], 'standard_deviation': found['path_length_std']}
        return {'path_length': {**row, 'n': n, 'path': 'slerp', 'epsilon': 1e-4, **self._seen_by}}

    def _reconstruction(self, state) -> dict[str, dict]:
        measures = {'psnr': jax.jit(psnr), 'ssim': jax.jit(ssim)}
        if self._perceptual != 'ssim':
            measures['lpips'] = self._distance
        columns = {name: [] for name in measures}
        for images in images_of(self._real_images, self._program.config.batch_size):
            real = pipeline.to_float(images)
            back = self._program.decode(state, self._program.encode(state, {'image': real}))
            for name, measure in measures.items():
                columns[name].append(np.asarray(measure(real, back)))
        data = self._program.config.data
        rows = {name: _mean(np.concatenate(parts), data) for name, parts in columns.items()}
        if 'lpips' in rows:
            rows['lpips'] |= self._seen_by
        return {f'reconstruction_{name}': row for name, row in rows.items()}


class Reference:
    """The real images that samples are compared with: a split of the data, or saved statistics.

    Attributes:
      name: for provenance.
      held_out: a source of real images that are not in the reference, or None.
    """

    def __init__(self, config, metrics: list[str]):
        """Opens what `metrics` will be measured against; reads no image."""
        data, where = config.data, config.eval.reference or config.data.split
        self._metrics, self._source, self.held_out = metrics, None, None
        if where.endswith('.npz'):
            self._set = sets.open_set(where)
            self._set.check(metrics)
            self.name = where
        else:
            self._source = sources.open_source(data, where)
            self.name = f'{data.source} {where}'
            if data.eval_split != where:
                self.held_out = sources.open_source(data, data.eval_split)

    def look(self, extractor) -> compare.Seen:
        """The reference as a network sees it."""
        if not self._metrics:
            return compare.Seen(0, {}, {})
        if self._source is None:
            return sets.look(self._set, extractor, self._metrics)
        return compare.look(images_of(self._source), extractor, self._metrics)

    @property
    def class_counts(self) -> np.ndarray | None:
        """Of the reference's labels, [classes]; None where it has none: equal shares are taken."""
        if self._source is None:
            return None
        labels = [self._source[i]['label'] for i in range(len(self._source))]
        return np.bincount(labels, minlength=self._source.num_classes)


def open_distance(options) -> tuple[Callable, dict]:
    """The distance of `config.eval.perceptual`, and what the provenance of its numbers says.

    The distance is jitted, of images in [-1, 1]: ([b, h, w, c], the same) -> [b].
    """
    name, given = options.perceptual, (options.perceptual_weights, options.perceptual_heads)
    if name == 'ssim':
        return jax.jit(dissimilarity), {'distance': '1 - MS-SSIM'}
    variables = lpips.load(name, *given)
    # The weights are an argument: as constants they would be part of the program.
    compiled = jax.jit(functools.partial(lpips.lpips, net=name))
    published = lpips.NETS[name].backbone, lpips.NETS[name].heads
    places = [find(file, path) for file, path in zip(published, given, strict=True)]
    sums = {'weights_sha256': sha256(places[0]), 'heads_sha256': sha256(places[1])}
    told = {'distance': f'LPIPS {name} 0.1', 'weights': str(places[0]), **sums}
    return functools.partial(compiled, variables), told


def images_of(source, size: int = CHUNK) -> Iterator[np.ndarray]:
    """A source's images in order, uint8 [up to size, h, w, c]."""
    for start in range(0, len(source), size):
        stop = min(start + size, len(source))
        yield np.stack([source[i]['image'] for i in range(start, stop)])


def _keeping(batches: Iterable[np.ndarray], first: list, n: int) -> Iterator[np.ndarray]:
    """Passes batches on; the first n images are put into `first` as well."""
    for images in batches:
        left = n - sum(map(len, first))
        if left > 0:
            first.append(images[:left])
        yield images


def per_example(program: Program, state) -> dict[str, dict]:
    """The mean of each of `evaluate_step`'s numbers over the eval split, with its error."""
    config = program.config
    source = sources.open_source(config.data, config.data.eval_split)
    columns: dict[str, list] = {}
    done = 0
    for batch in pipeline.evaluation_batches(config, source, config.batch_size, *program.reader):
        batch = program.to_global(batch)
        indices = np.arange(done, done + config.batch_size, dtype=np.int32)
        real = min(config.batch_size, len(source) - done)
        for name, values in program.evaluate(state, indices, batch).items():
            columns.setdefault(name, []).append(values[:real])
        done += real
    rows = {name: _mean(np.concatenate(parts), config.data) for name, parts in columns.items()}
    return {name: {**row, **BITS.get(name, {})} for name, row in rows.items()}


def _mean(values: np.ndarray, data) -> dict:
    values, n = values.astype(np.float64), len(values)
    error = values.std(ddof=1) / np.sqrt(n)
    data = f'{data.source} {data.eval_split}'
    return {'value': values.mean(), 'standard_error': error, 'n': n, 'data': data}


def provenance(config, step: int) -> dict:
    """Where a number comes from, as far as all numbers of a run share it."""
    return {
        'method': config.method,
        'step': step,
        'seed': config.seed,
        'ema': config.get('ema_decay', 0.0) > 0,
        'init_from': config.init_from,
        'sampler': workdir.plain(config.get('sampler', {})),
        'knobs': workdir.plain(config.sample.knobs),
        'gen_jax': code_version(),
    }


@functools.cache
def code_version() -> str:
    """The package's version, and the commit where it runs from a checkout."""
    git = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty']
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return f'{__version__}+{found.stdout.strip()}' if found.returncode == 0 else __version__
