"""What `config.eval` asks of a model: which numbers, seen through what, compared with what.

The modes evaluate and train ask the same questions. Every answer carries its provenance.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from gen_jax import encoded
from gen_jax.config import guided_by, nearest, require
from gen_jax.data import pipeline, sources
from gen_jax.errors import UserError
from gen_jax.interop.weights import find, sha256
from gen_jax.metrics import compare, lpips, path_length, sets
from gen_jax.metrics.accuracy import accuracy
from gen_jax.metrics.diversity import dissimilarity, diversity
from gen_jax.metrics.features.extract import DIMS, NETWORKS, Extractor, open_extractor
from gen_jax.metrics.features.resize import RESIZES
from gen_jax.metrics.modes import by_classifier
from gen_jax.metrics.psnr import psnr
from gen_jax.metrics.ssim import smallest_side, ssim
from gen_jax.runtime import random, workdir
from gen_jax.runtime.checkpoint import fingerprint
from gen_jax.runtime.program import Program

# What a classifier says of samples, beside what `compare` knows.
CLASSIFIER = ('accuracy', 'modes')
# What looks at samples through no network of `eval.network`.
PERCEPTUAL = ('diversity', 'path_length', 'reconstruction')
# What looks at the eval split as the model encodes it, and at nothing that it draws.
ENCODED = ('rfid', 'probe', 'active_units')
METRICS = ('per_example', *compare.ROLE, *CLASSIFIER, *PERCEPTUAL, *ENCODED)
# Fields of Method; the others need `sample_step`.
NEEDS = {
    'per_example': ('evaluate_step',),
    'path_length': ('decode', 'latent_dim'),
    'reconstruction': ('encode', 'decode'),
    'rfid': ('encode', 'decode'),
    'probe': ('encode',),
    'active_units': ('encode',),
}
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


def check(program: Program, names: Iterable[str], field: str = 'metrics') -> None:
    """Raises UserError where the config, the method or the data cannot give a metric.

    Args:
      program: of the model.
      names: of metrics.
      field: of `config.eval`, that has them.
    """
    config, options = program.config, program.config.eval
    _check_names('network', options.network, NETWORKS)
    _check_names('resize', options.resize, RESIZES)
    _check_names('perceptual', options.perceptual, ('ssim', *lpips.NETS))
    require(options.dims in DIMS, 'eval.dims', options.dims, f'one of {DIMS}')
    if not names:
        raise UserError(f'no metric in config.eval.{field}: name some of {", ".join(METRICS)}')
    for name in names:
        if name not in METRICS:
            near = nearest(str(name), METRICS)
            raise UserError(
                f"config.eval.{field}: no metric {name!r}{near}; written as \"('fid', 'kid')\""
            )
        for needed in NEEDS.get(name, ('sample_step',)):
            if getattr(program.method, needed) is None:
                raise UserError(
                    f'config.method={config.method!r} has no {needed}, which metric {name!r} '
                    f'needs: leave it out of config.eval.{field}'
                )
    inception = options.network == 'inception'
    refused = (
        (
            {*CLASSIFIER} if inception else {},
            'needs a classifier of this data: set config.eval.network to digits or fashion_mnist',
        ),
        (
            {} if program.num_classes else {'accuracy'},
            "needs samples of a class: set config.data.num_classes ('modes' needs none)",
        ),
        (
            {'is', 'sfid'} if inception and options.dims != 2048 else {},
            f'is not of the {options.dims} features of config.eval.dims: set it to 2048',
        ),
        (
            {'path_length'} if options.perceptual != 'vgg' else {},
            "is measured by LPIPS over VGG-16: set config.eval.perceptual to 'vgg'",
        ),
        (
            {'probe'} if program.num_classes else {},
            'would find the labels that the model is told: set config.data.num_classes=0',
        ),
    )
    for cannot, why in refused:
        for name in names:
            if name in cannot:
                raise UserError(f'metric {name!r} {why}, or leave it out of config.eval.{field}')


def _check_names(field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f'config.eval.{field}={value!r} is unknown{nearest(value, known)}')


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
        source = self._real_images
        # Spread over the split, which may be sorted by class.
        at = np.linspace(0, len(source) - 1, min(DIVERSE, len(source))).astype(int)
        real = np.stack([example['image'] for example in sources.read(source, at)])
        of_real = measure(pipeline.to_float(real))['diversity']
        found = measure(pipeline.to_float(images), reference=of_real)
        row = {'value': found['diversity'], 'n': len(images), 'pairs': PAIRS, **self._seen_by}
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


class Reference:
    """The real images that samples are compared with: a split of the data, or an .npz.

    Attributes:
      name: for provenance.
      n: images; None where saved statistics do not tell.
      num_classes: of its labels; None where it has none.
      held_out: a source of real images that are not in the reference, or None.
    """

    def __init__(self, config, extractor: Extractor, metrics: list[str]):
        """Opens what `metrics` will be measured against; reads no image."""
        data, where = config.data, config.eval.reference or config.data.split
        self._extractor, self._metrics = extractor, metrics
        self._source = self._set = self.num_classes = self.held_out = None
        if where.endswith('.npz'):
            self._set = sets.open_set(where)
            self._set.check(metrics)
            self.name, self.n = where, len(self._set) or None
        else:
            self._source = sources.open_source(data, where)
            self.name, self.n = f'{data.source} {where}', len(self._source)
            self.num_classes = self._source.num_classes
            if data.eval_split != where:
                self.held_out = sources.open_source(data, data.eval_split)

    def look(self) -> compare.Seen:
        """The reference as the network sees it."""
        if not self._metrics:
            return compare.Seen(0, {}, {})
        if self._source is None:
            return sets.look(self._set, self._extractor, self._metrics)
        return compare.look(sources.images_of(self._source), self._extractor, self._metrics)

    def told(self, metric: str) -> dict:
        """What the provenance of a number says of the reference it was measured against."""
        if metric == 'is':
            return {}
        if self._source is not None:
            return {'reference': self.name, 'n_reference': self.n}
        saved = None
        if metric not in compare.NEEDS_ALL:
            saved = self._set.saved(compare.ROLE[metric], self._extractor.provenance)
        told = self._set.describe(saved)
        return {'reference': told, 'n_reference': told['n']}

    @functools.cached_property
    def class_counts(self) -> np.ndarray | None:
        """Of the reference's labels, [classes]; None where it has none: equal shares are taken."""
        if not self.num_classes:
            return None
        return np.bincount(sources.labels_of(self._source), minlength=self.num_classes)


def check_side(config, distance: str, what: str, mend: str) -> None:
    """Raises UserError where the config's images are too small for a distance, 'ssim' or LPIPS's.

    Args:
      config: with `data.image_size`.
      distance: as `config.eval.perceptual` names it.
      what, mend: what needs it, and how to do without.
    """
    side = smallest_side(1) if distance == 'ssim' else lpips.NETS[distance].smallest_side
    if config.data.image_size < side:
        raise UserError(
            f'{what} needs images of at least {side}x{side} pixels, and these have '
            f'{config.data.image_size}: {mend}'
        )


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
        **({'standing': config.sample.standing} if config.sample.get('standing') else {}),
    }
