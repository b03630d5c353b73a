"""Sets of images against each other, through one feature network: which numbers need what."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gen_jax.config import nearest
from gen_jax.errors import UserError
from gen_jax.metrics import prdc
from gen_jax.metrics.features.extract import Extractor
from gen_jax.metrics.fid import Moments, Statistics, fid
from gen_jax.metrics.inception_score import inception_score
from gen_jax.metrics.kid import kid

# What each metric looks at, and whether it needs every image's features or their moments only.
ROLE = {'fid': 'pool', 'sfid': 'spatial', 'kid': 'pool', 'prdc': 'pool', 'is': 'logits'}
NEEDS_ALL = ('kid', 'prdc', 'is')
# The numbers of a metric that gives several.
GIVES = {'prdc': ('precision', 'recall', 'f1', 'density', 'coverage')}


# The fewest images that a metric can do with: (judged, reference).
LEAST = {'fid': (2, 2), 'sfid': (2, 2), 'kid': (2, 2), 'prdc': (4, 6), 'is': (10, 0)}


class Options(NamedTuple):
    """The metrics' numbers, with the defaults of their packages.

    Attributes:
      kid_subsets, kid_subset_size: random subsets of the kernel distance, and their size, or all
        images of the smaller set where it has fewer.
      is_splits: parts that the Inception Score is the mean of.
      pr_neighbours, dc_neighbours: k of precision and recall, and of density and coverage.
      seed: of the subsets of KID, and of the order that the splits are cut in.
    """

    kid_subsets: int = 100
    kid_subset_size: int = 1000
    is_splits: int = 10
    pr_neighbours: int = 3
    dc_neighbours: int = 5
    seed: int = 2020


DEFAULTS = Options()


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """A set of images as a network sees it: all that the metrics asked for need of it.

    Attributes:
      n: images; None where saved statistics do not tell.
      moments: {role: Moments or Statistics} for `fid` and `sfid`.
      features: {role: float32 [n, d]} for the others.
    """

    n: int | None
    moments: dict[str, Moments | Statistics]
    features: dict[str, np.ndarray]


def check(metrics: Iterable[str]) -> None:
    """Raises UserError where a name is no metric of this file."""
    for name in metrics:
        if name not in ROLE:
            raise UserError(f'unknown metric {name!r}{nearest(name, ROLE)}')


def roles(metrics: Iterable[str]) -> tuple[str, ...]:
    """What an extractor has to give for these metrics."""
    return tuple(dict.fromkeys(ROLE[name] for name in metrics))


def look(
    batches: Iterable[np.ndarray],
    extractor: Extractor,
    metrics: Iterable[str],
    keep: Iterable[str] = (),
) -> Seen:
    """Reads a set once.

    Args:
      batches: uint8 [b, h, w, c] each.
      extractor: opened with `roles(metrics)`, and those of `keep`.
      metrics: names.
      keep: roles whose features are wanted beside those that the metrics need.
    """
    batches = _rebatched(batches, extractor.batch_size)
    kept = {role: [] for role in keep} | {ROLE[x]: [] for x in metrics if x in NEEDS_ALL}
    moments = {ROLE[name]: Moments() for name in metrics if name not in NEEDS_ALL}
    n = 0
    for images in batches:
        features = extractor(images)
        n += len(images)
        for role, values in features.items():
            if role in moments:
                moments[role].update(values)
            if role in kept:
                kept[role].append(values)
    if n < 2:
        raise UserError(f'{n} image(s) to look at: a set needs at least 2')
    return Seen(n, moments, {role: np.concatenate(parts) for role, parts in kept.items()})


def _rebatched(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same images, `size` at a time but for the last: the extractor fills up every batch."""
    held = []
    for images in batches:
        held.append(images)
        if sum(map(len, held)) >= size:
            images = np.concatenate(held)
            whole = len(images) // size * size
            yield images[:whole]
            held = [images[whole:]]
    left = np.concatenate(held) if held else []
    if len(left):
        yield left


def compare(
    real: Seen, fake: Seen, metrics: Iterable[str], options: Options = DEFAULTS, suffix: str = ''
) -> dict[str, dict]:
    """The numbers of `metrics`, `prdc` giving five.

    Args:
      real: the reference set, whose order does not matter.
      fake: the set that is judged; `is` looks at nothing else.
      metrics: names.
      options: see `Options`.
      suffix: of the extractor that both were seen through.

    Returns:
      {name + suffix: {'value': float, ...}}, with spreads and the metric's own settings, and `n`
      and `n_reference` images.
    """
    rows: dict[str, dict] = {}
    for name in metrics:
        rows |= {k + suffix: v for k, v in _one(name, real, fake, options).items()}
        for row in rows.values():
            row.setdefault('n', fake.n)
    for name, row in rows.items():
        if not name.startswith('is'):
            row['n_reference'] = real.n
    return rows


@functools.lru_cache(maxsize=1)
def _reference(real: Seen, role: str, k: int, k_density: int) -> prdc.Reference:
    """That of the last set that was compared with: its balls take longer than all else."""
    return prdc.Reference(real.features[role], k, k_density)


def _one(name: str, real: Seen, fake: Seen, options: Options) -> dict[str, dict]:
    role = ROLE[name]
    if name in ('fid', 'sfid'):
        return {name: {'value': fid(real.moments[role], fake.moments[role])}}
    if name == 'is':
        found = inception_score(fake.features[role], options.is_splits, options.seed)
        spread = {'standard_deviation': found['std'], 'splits': options.is_splits}
        spread['shuffle_seed'] = options.seed
        return {name: {'value': found['mean'], **spread}}
    a, b = real.features[role], fake.features[role]
    if name == 'kid':
        # Unbiased whatever the size; smaller subsets only spread more.
        size = min(options.kid_subset_size, len(a), len(b))
        # In torch-fidelity's order, which decides the subsets that a seed draws.
        found = kid(b, a, options.kid_subsets, size, seed=options.seed)
        settings = {'subsets': options.kid_subsets, 'subset_size': size}
        settings['subset_seed'] = options.seed
        row = {'value': found['mean'], **settings}
        # Subsets that are all of both sets are the same each time, and spread nowhere.
        if size < max(len(a), len(b)):
            row['standard_error'] = found['standard_error']
        return {name: row}
    found = _reference(real, role, options.pr_neighbours, options.dc_neighbours)(b)
    dense = ('density', 'coverage')
    ks = {x: options.dc_neighbours if x in dense else options.pr_neighbours for x in found}
    return {measure: {'value': value, 'k': ks[measure]} for measure, value in found.items()}
