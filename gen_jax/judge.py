"""What `config.eval` asks of a model: which numbers, seen through what, compared with what.

The modes evaluate and train ask the same questions. Every answer carries its provenance.
"""

import functools
import logging
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from gen_jax import encoded
from gen_jax.config import guided_by
from gen_jax.data import pipeline, sources
from gen_jax.errors import UserError
from gen_jax.metrics import compare, path_length
from gen_jax.metrics.accuracy import accuracy
from gen_jax.metrics.diversity import diversity
from gen_jax.metrics.features.extract import open_extractor
from gen_jax.metrics.modes import by_classifier
from gen_jax.metrics.psnr import psnr
from gen_jax.metrics.ssim import ssim
from gen_jax.runtime import random, workdir
from gen_jax.runtime.checkpoint import fingerprint
from gen_jax.runtime.program import Program
from gen_jax.yardsticks import (
    CLASSIFIER,
    ENCODED,
    NEEDS,
    PERCEPTUAL,
    Reference,
    check,
    check_side,
    open_distance,
)

# What kind of number a method's likelihood is (see `metrics.bits_per_dim`).
BITS = {
    'vlb_bits_per_dim': {'kind': 'bound', 'likelihood': 'discrete'},
    # Its terms.
    **{
        f'vlb_{term}_bits_per_dim': {'kind': 'part of a bound', 'likelihood': 'discrete'}
        for term in ('prior', 'middle', 'decoder')
    },
    'ode_bits_per_dim': {'kind': 'exact', 'likelihood': 'dequantised'},
    'ode_density_bits_per_dim': {'kind': 'exact', 'likelihood': 'density'},
    'elbo': {'kind': 'bound', 'unit': 'nats per image'},
    'iw_bound': {'kind': 'bound', 'unit': 'nats per image'},
    'elbo_bits_per_dim': {'kind': 'bound', 'likelihood': 'discrete'},
    'iw_bits_per_dim': {'kind': 'bound', 'likelihood': 'discrete'},
}
DIVERSE, PAIRS = 500, 1000  # images that diversity looks at, and pairs of them
COLLAPSED = 0.5  # diversity over that of real images, below which a warning is given


class Judge:
    """What `config.eval` asks, opened once and asked at any step.

    Attributes:
      of_samples: the metrics that look at samples.
    """

    def __init__(self, program: Program, names: Iterable[str], n: int, field: str = 'metrics'):
        """Opens networks and reference sets, so that what is missing is told beforehand.

        Args:
          program: of the model.
          names: of metrics.
          n: how many samples will be judged.
          field: of `config.eval`, that has the names, for errors.
        """
        check(program, names, field)
        self._program, self._names, self._n = program, tuple(names), n
        self._leave_out = f'leave it out of config.eval.{field}'
        self._compared = tuple(name for name in names if name in compare.ROLE)
        self.of_samples = tuple(
            name for name in names if NEEDS.get(name, ('sample_step',)) == ('sample_step',)
        )
        self._keep = ('logits',) if {*CLASSIFIER} & {*names} else ()
        if {*PERCEPTUAL, *ENCODED} & {*names}:
            data = program.config.data
            self._real_images = sources.open_source(data, data.eval_split)
        if self._compared or self._keep or 'rfid' in names:
            self._open_network()
        if {*PERCEPTUAL} & {*names}:
            self._open_distance()
        if 'probe' in names:
            self._open_probe()

    def _open_network(self) -> None:
        config, options = self._program.config, self._program.config.eval
        pairs = (*self._compared, 'fid') if 'rfid' in self._names else self._compared
        roles = tuple(dict.fromkeys([*compare.roles(pairs), *self._keep]))
        look = options.network, options.weights, options.resize, roles, options.dims
        self._extractor = open_extractor(
            *look, options.batch_size, self._program.mesh, config.data.fit == 'pad'
        )
        size = config.data.image_size
        self._extractor.check((size, size, config.data.channels))
        against = [name for name in self._compared if name != 'is']
        self._reference = Reference(config, self._extractor, against)
        for name in self._compared:
            least, least_real = compare.LEAST[name]
            self._check_count(name, 'samples', self._n, least)
            if name != 'is':
                self._check_count(name, self._reference.name, self._reference.n, least_real)
        if 'rfid' in self._names:
            self._check_count('rfid', 'those of the eval split', len(self._real_images), 2)
        classes = self._reference.num_classes
        if self._keep and classes not in (None, self._extractor.classes):
            raise UserError(
                f'network {options.network!r} tells {self._extractor.classes} classes apart, but '
                f'{config.data.source} has {classes}: as for accuracy or modes, {self._leave_out}'
            )

    def _open_distance(self) -> None:
        config = self._program.config
        self._distance, self._seen_by = open_distance(config.eval)
        name = next(name for name in self._names if name in PERCEPTUAL)
        seen_by = {self._perceptual} | ({'ssim'} if 'reconstruction' in self._names else set())
        for distance in sorted(seen_by):
            check_side(config, distance, f'metric {name!r}', self._leave_out)

    def _open_probe(self) -> None:
        data = self._program.config.data
        self._fitted = sources.open_source(data, data.split)
        if not self._fitted.num_classes:
            raise UserError(
                f"metric 'probe' needs images with labels, which {data.source} has not: "
                f'{self._leave_out}'
            )

    def _check_count(self, name: str, what: str, n: int | None, least: int) -> None:
        if n is not None and n < least:
            raise UserError(
                f'metric {name!r} needs at least {least} images, and {what} are {n}: take more, or '
                f'{self._leave_out}'
            )

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
        if 'rfid' in self._names:
            rows |= encoded.rfid(self._program, state, self._real_images, self._extractor)
        if 'probe' in self._names:
            rows |= encoded.probed(self._program, state, self._fitted, self._real_images)
        if 'active_units' in self._names:
            rows |= encoded.active_units(self._program, state, self._real_images)
        if 'path_length' in self._names:
            rows |= self._path_length(state)
        if self.of_samples:
            rows |= self._samples(images)
        shared = provenance(self._program.config, step, state)
        return {name: {**row, **shared} for name, row in rows.items()}

    def given(self) -> list[str]:
        """The names of the numbers that `__call__` gives."""
        measures = ('psnr', 'ssim')
        if self._perceptual != 'ssim':
            measures += (f'lpips_{self._perceptual}',)
        several = {
            'per_example': self._program.evaluated() if 'per_example' in self._names else (),
            'diversity': (f'diversity_{self._perceptual}',),
            'reconstruction': tuple(f'reconstruction_{measure}' for measure in measures),
            'probe': ('probe', 'probe_of_pixels'),
        }
        names = []
        for name in self._names:
            suffix = (
                self._extractor.suffix if name in (*self._compared, *CLASSIFIER, 'rfid') else ''
            )
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
        real, floor = self._real, self._floor  # before samples are drawn, which may take hours
        seen = compare.look(images, self._extractor, self._compared, self._keep)
        rows = compare.compare(real, seen, self._compared)
        for metric in self._compared:
            for name in compare.GIVES.get(metric, (metric,)):
                rows[name] |= self._reference.told(metric)
        if self._keep:
            rows |= self._classes(seen.features['logits'])
        for name, row in floor.items():
            rows[name] |= {'floor': row['value'], 'floor_n': row['n']}
        shared = {**self._extractor.provenance, **sampling(self._program.config)}
        return {name + self._extractor.suffix: {**row, **shared} for name, row in rows.items()}

    @functools.cached_property
    def _real(self) -> compare.Seen:
        return self._reference.look()

    @functools.cached_property
    def _floor(self) -> dict[str, dict]:
        """What the eval split's real images get: what samples can hope for, at that n."""
        source = self._reference.held_out
        if source is None:
            return {}
        enough = [x for x in self._compared if len(source) >= compare.LEAST[x][0]]
        if not enough and 'accuracy' not in self._names:
            return {}
        seen = compare.look(sources.images_of(source), self._extractor, enough, self._keep)
        rows = compare.compare(self._real, seen, enough)
        if 'accuracy' in self._names:
            found = accuracy(seen.features['logits'], sources.labels_of(source)).overall
            rows['accuracy'] = {'value': found.value, 'n': found.n}
        return rows

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
            rows['modes']['reference'] = self._reference.name
        return rows

    def _diversity(self, images: np.ndarray) -> dict[str, dict]:
        measure = functools.partial(diversity, distance=self._distance, pairs=PAIRS)
        source, label = self._real_images, self._program.config.sample.label
        alike = np.arange(len(source))
        if self._program.num_classes and label >= 0:  # one class is not as diverse as all
            of_class = np.flatnonzero(sources.labels_of(source) == label)
            alike = of_class if len(of_class) > 1 else alike
        # Spread over the split, which may be sorted by class.
        at = alike[np.linspace(0, len(alike) - 1, min(DIVERSE, len(alike))).astype(int)]
        real = np.stack([example['image'] for example in sources.read(source, at)])
        of_real = measure(pipeline.to_float(real))['diversity']
        found = measure(pipeline.to_float(images), reference=of_real)
        pairs = min(PAIRS, len(images) * (len(images) - 1) // 2)
        row = {'value': found['diversity'], 'n': len(images), 'pairs': pairs, **self._seen_by}
        row |= sampling(self._program.config)
        row |= {'real': of_real, 'real_n': len(real), 'ratio': found['diversity_ratio']}
        if row['ratio'] < COLLAPSED:
            logging.warning(
                'samples are %.0f%% as diverse as real images: the model seems to have collapsed '
                'to few images; look at the grids, and at an earlier checkpoint (--step)',
                100 * row['ratio'],
            )
        return {f'diversity_{self._perceptual}': row}

    def _path_length(self, state) -> dict[str, dict]:
        program, n = self._program, self._n
        key = random.stream(program.config.seed, 'path_length')
        ends = path_length.draw(key, n, program.method.latent_dim)
        found = path_length.path_length(
            lambda latents, index: program.decode(state, latents), self._distance, *ends
        )
        row = {'value': found['path_length'], 'standard_deviation': found['path_length_std']}
        how = {'path': 'slerp', 'epsilon': 1e-4, 't': 'uniform', 'discarded': '1% at each end'}
        row |= standing(program.config)
        return {'path_length': {**row, 'n': n, **how, **self._seen_by}}

    def _reconstruction(self, state) -> dict[str, dict]:
        measures = {'psnr': jax.jit(psnr), 'ssim': jax.jit(ssim)}
        if self._perceptual != 'ssim':
            measures[f'lpips_{self._perceptual}'] = self._distance
        columns = {name: [] for name in measures}
        config = self._program.config
        for real, back in encoded.returned(self._program, state, self._real_images):
            for name, measure in measures.items():
                columns[name].append(np.asarray(measure(real, back)))
        rows = {name: _mean(np.concatenate(parts), config.data) for name, parts in columns.items()}
        for name in rows.keys() - {'psnr', 'ssim'}:
            rows[name] |= self._seen_by
        return {f'reconstruction_{name}': row for name, row in rows.items()}


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
    for batch in pipeline.evaluation_batches(config, source, config.batch_size, program.rows):
        batch = program.to_global(batch)
        indices = np.arange(done, done + config.batch_size, dtype=np.int32)
        real = min(config.batch_size, len(source) - done)
        for name, values in program.evaluate(state, indices, batch).items():
            columns.setdefault(name, []).append(values[:real])
        done += real
    rows = {name: _mean(np.concatenate(parts), config.data) for name, parts in columns.items()}
    # What may be chosen after training, and decides these numbers.
    parts = [part for part in ('likelihood', 'sampler') if part in config]
    chosen = {part: workdir.plain(config[part]) for part in parts}
    if weighed := config.get('vae', {}).get('weighed'):
        chosen['vae'] = {'weighed': weighed}
    settings = {'settings': chosen} if chosen else {}
    return {name: {**row, **BITS.get(name, {}), **settings} for name, row in rows.items()}


def _mean(values: np.ndarray, data) -> dict:
    values, n = values.astype(np.float64), len(values)
    error = values.std(ddof=1) / np.sqrt(n) if n > 1 else None  # one tells of no spread
    data = f'{data.source} {data.eval_split}'
    return {'value': values.mean(), 'standard_error': error, 'n': n, 'data': data}


def provenance(config, step: int, state) -> dict:
    """Where a number comes from, as far as all numbers of a run share it."""
    data = config.data
    told = {
        'method': config.method,
        'step': step,
        'state': fingerprint(state),
        'seed': config.seed,
        'ema': config.get('ema_decay', 0.0) > 0,
        'image_size': data.image_size,
        'fit': data.fit,
        'gen_jax': workdir.code_version(),
    }
    if latent := config.get('latent', {}).get('workdir'):
        told['latent'] = {'workdir': latent, 'state': fingerprint(state.stage)}
    if guided_by(config):
        told['guide'] = {**workdir.plain(config.guide), 'state': fingerprint(state.guide)}
    # A trained state is the config's; one that was imported, without a step, is its folder's.
    return told if step else {**told, 'init_from': config.init_from}


def sampling(config) -> dict:
    """What samples were asked for, beside the state and the seed."""
    return {
        'sampler': workdir.plain(config.get('sampler', {})),
        'knobs': workdir.plain(config.sample.knobs),
        'label': config.sample.label,
        **standing(config),
    }


def standing(config) -> dict:
    """Of how many batches standing statistics are, and how large a training's are; {}: none are."""
    if not config.sample.get('standing'):
        return {}
    size = {'batch_size': config.batch_size, 'accumulate': config.accumulate}
    return {'standing': {'batches': config.sample.standing, **size}}
