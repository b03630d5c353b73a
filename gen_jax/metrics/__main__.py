"""Numbers for anybody's images, without a config.

  python -m gen_jax.metrics A B --weights=FILE           FID of A, with B as the reference
  python -m gen_jax.metrics A B --metrics=fid,kid,is,prdc,sfid
  python -m gen_jax.metrics A --metrics=is               a number that needs no reference
  python -m gen_jax.metrics B --save-stats=FILE.npz      statistics to be a reference later

A and B are each a folder of images, an .npz or .npy of uint8 images, or saved statistics (.npz with
mu and sigma). Numbers are printed, and written with the provenance of each. Between saved
statistics no network is run: their numbers are named and told of by what the files say.
"""

import argparse
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from gen_jax.errors import UserError, is_users
from gen_jax.metrics import compare, sets
from gen_jax.metrics.features import extract
from gen_jax.metrics.features.resize import RESIZES
from gen_jax.metrics.fid import save_statistics
from gen_jax.metrics.sets import ImageSet, open_set
from gen_jax.runtime import workdir
from gen_jax.runtime.compilation import keep_compiled, spare_threads


class Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str):
        """Raises UserError instead of printing the usage."""
        raise UserError(f'{message}; --help lists the arguments')


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """Reads whole numbers from `least` up, to `most` where there is one."""
    wanted = f'from {least} up' if most is None else f'from {least} to {most}'

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number {wanted}')
        return int(text)

    return read


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, checked; `metrics` as a tuple of names without repetition."""
    options = compare.Options()
    parser = Parser(
        'python -m gen_jax.metrics',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('A', help='the images that are judged')
    add('B', nargs='?', help='the reference; `is` needs none')
    add('--metrics', help=f'some of {",".join(compare.ROLE)} (default: fid)')
    add('--weights', default='', metavar='FILE', help='of the network (default: the cache)')
    add('--network', help=f'{", ".join(extract.NETWORKS)} (the first)')
    add('--resize', help=f'for inception: {", ".join(RESIZES)} (default: tf1)')
    add('--dims', type=int, help=f'for inception: features, of {extract.DIMS} (the first)')
    add('--n', type=at_least(2), help='take the first N images of each set (default: all)')
    add('--batch_size', type=at_least(1), help='images at a time (default: what is fastest here)')
    add('--kid_subsets', type=at_least(2), default=options.kid_subsets, help='(%(default)s)')
    add(
        '--kid_subset_size', type=at_least(2), default=options.kid_subset_size, help='(%(default)s)'
    )
    seeds = at_least(0, 2**32 - 1)  # those of NumPy's RandomState
    add('--seed', type=seeds, default=options.seed, help='of kid and is (%(default)s)')
    add('--out', default='metrics.json', metavar='FILE', help='(%(default)s)')
    add('--save-stats', metavar='FILE.npz', help='write the statistics of A, and compare nothing')
    args = parser.parse_args(argv)
    if args.metrics is None and not args.save_stats:
        args.metrics = 'fid'
    elif args.metrics is not None and not args.metrics.strip(', '):
        raise UserError(f'--metrics names nothing: expected some of {",".join(compare.ROLE)}')
    args.metrics = tuple(dict.fromkeys(args.metrics.split(','))) if args.metrics else ()
    compare.check(args.metrics)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Raises UserError where arguments do not fit each other, or what they name to write."""
    compared = [name for name in args.metrics if name != 'is']
    if args.save_stats and (args.B is not None or args.metrics):
        raise UserError('--save-stats takes one set, and neither B nor --metrics')
    if compared and args.B is None:
        raise UserError(f'{compared[0]} compares A with a reference: name B, or ask for is')
    if args.B is not None and not compared:
        raise UserError('no metric asked for compares A with B: leave B out, or ask for fid')
    if args.network not in (None, 'inception') and (args.resize or args.dims):
        raise UserError(f'--resize and --dims are for inception: leave them out for {args.network}')
    if args.dims not in (None, extract.DIMS[0]) and {'is', 'sfid'} & {*args.metrics}:
        raise UserError('--dims concerns neither is nor sfid: ask for them without it')
    place = Path(args.save_stats or args.out)
    check_place(place)
    if args.save_stats and (place.suffix != '.npz' or place.exists()):
        raise UserError(f'--save-stats={place}: expected the name of a new .npz file')


def check_place(place: Path) -> None:
    """Raises UserError where no file can be put; tries with one of about its name."""
    wanted = 'expected a file in a folder that can be written'
    try:
        if place.exists() and not place.is_file():
            raise UserError(f'cannot write {place}: {wanted}')
        with tempfile.NamedTemporaryFile(prefix=f'.{place.name}.', dir=place.parent):
            pass
    except OSError as error:
        raise UserError(f'cannot write {place} ({error.strerror}): {wanted}') from None


def run(args: argparse.Namespace) -> None:
    """Opens what the arguments name, and writes what they ask for."""
    compared = tuple(name for name in args.metrics if name != 'is')
    judged = open_set(args.A, args.n)
    judged.check(args.metrics)
    if args.save_stats:
        return save(args, judged)
    reference = None if args.B is None else open_set(args.B, args.n)
    if reference is not None:
        reference.check(compared)
    check_counts(judged, reference, args.metrics)
    extractor = saved_story(args, judged, reference)
    if extractor is None:
        extractor = open_extractor(args, args.metrics)
        for images in (judged, reference):
            if images is not None and images.shape:
                extractor.check(images.shape[1:])
        tell_sizes(args, judged, reference)
    # The reference first: statistics that do not fit are refused before the network runs.
    real = look(args, reference, extractor, compared) if reference is not None else None
    fake = look(args, judged, extractor, args.metrics)
    options = compare.Options(args.kid_subsets, args.kid_subset_size, seed=args.seed)
    rows = compare.compare(real or fake, fake, args.metrics, options, extractor.suffix)
    for metric in args.metrics:
        told = {'images': describe(judged, fake, metric)}
        told['n'] = told['images']['n']
        if metric != 'is':
            told['reference'] = describe(reference, real, metric)
            told['n_reference'] = told['reference']['n']
        told |= {**extractor.provenance, 'seed': args.seed, 'gen_jax': workdir.code_version()}
        for name in compare.GIVES.get(metric, (metric,)):
            rows[name + extractor.suffix] |= told
    workdir.write_json(Path(args.out), rows)
    print_table(rows)
    print(f'where they come from: {args.out}')


def tell_sizes(args: argparse.Namespace, judged: ImageSet, reference: ImageSet | None) -> None:
    """Says on stderr that sizes differ: Inception takes any, and the numbers suffer."""
    shapes = [images.shape for images in (judged, reference) if images is not None and images.shape]
    sizes = [f'{w}x{h}' for _, h, w, _ in shapes]
    if len({*sizes}) == 2 and network(args) == 'inception':
        a, b = sizes
        line = f'images of A are {a}, those of B {b}: both are resized to 299x299'
        print(f'gen_jax.metrics: {line}', file=sys.stderr)


def check_counts(judged: ImageSet, reference: ImageSet | None, metrics: tuple[str, ...]) -> None:
    """Raises UserError where a set has fewer images than a metric can do with."""
    for name in metrics:
        for images, least in zip((judged, reference), compare.LEAST[name], strict=True):
            if images is not None and images.shape and len(images) < least:
                raise UserError(
                    f'{name} needs at least {least} images, and {images.path} gives '
                    f'{len(images)}: give more, or leave {name} out'
                )


def network(args: argparse.Namespace) -> str:
    """Its name, be it asked for or not."""
    return args.network or extract.NETWORKS[0]


def saved_story(
    args: argparse.Namespace, judged: ImageSet, reference: ImageSet | None
) -> sets.Told | None:
    """What the files say of their statistics; None where a network has to look at images."""
    both = [images for images in (judged, reference) if images is not None]
    if args.weights and any(images.shape for images in both):
        return None
    known = (args.network, extract.NETWORKS), (args.resize, RESIZES), (args.dims, extract.DIMS)
    if any(name is not None and name not in names for name, names in known):
        return None  # whoever opens the network tells
    if args.weights:
        raise UserError('statistics are compared without a network: leave --weights out')
    told = {'inception': sets.GUIDED_DIFFUSION['network']}
    asked = {'network': told.get(args.network, args.network)}
    asked |= {'resize': args.resize, 'dims': args.dims}
    given = {field: value for field, value in asked.items() if value is not None}
    return sets.agreed(both, args.metrics, given)


def open_extractor(args: argparse.Namespace, metrics: tuple[str, ...]) -> extract.Extractor:
    """The network that the arguments name."""
    return extract.open_extractor(
        network(args),
        args.weights,
        args.resize or 'tf1',
        compare.roles(metrics),
        args.dims or extract.DIMS[0],
        args.batch_size or 0,
    )


def save(args: argparse.Namespace, images: ImageSet) -> None:
    """Writes the moments of a set, and says where they come from."""
    if images.kind == 'statistics':
        raise UserError(f'{images.path} holds statistics already: --save-stats takes images')
    # Classifiers have no features for sFID; who asks for fewer of Inception's wants less work.
    both = network(args) == 'inception' and args.dims in (None, extract.DIMS[0])
    metrics = ('fid', 'sfid') if both else ('fid',)
    extractor = open_extractor(args, metrics)
    moments = look(args, dataclasses.replace(images, statistics=()), extractor, metrics).moments
    story = {**extractor.provenance, 'images': images.describe()}
    story['gen_jax'] = workdir.code_version()
    save_statistics(args.save_stats, moments['pool'], moments.get('spatial'), **story)
    print(f'statistics of {len(images)} images in {args.save_stats}')


def look(
    args: argparse.Namespace,
    images: ImageSet,
    extractor: extract.Extractor | sets.Told,
    metrics: Iterable[str],
) -> compare.Seen:
    """`sets.look`, with a bar where somebody may be watching."""
    bar = {'desc': images.path, 'total': -(-len(images) // sets.READ), 'leave': False}
    watch = functools.partial(tqdm, **bar, disable=None)
    return sets.look(images, extractor, metrics, watch)


def describe(images: ImageSet, seen: compare.Seen, metric: str) -> dict:
    """What a metric was made from: the images, or moments saved with them."""
    return images.describe(
        None if metric in compare.NEEDS_ALL else seen.moments[compare.ROLE[metric]]
    )


def print_table(rows: dict[str, dict]) -> None:
    """Name, value and spread, a line each."""
    width = max(map(len, rows))
    for name, row in rows.items():
        spread = row.get('standard_error', row.get('standard_deviation'))
        beside = '' if spread is None else f' +- {spread:.2g}'
        print(f'{name:{width}} {row["value"]:.6g}{beside}')


def main(argv: list[str]) -> int:
    """Runs; returns the exit code, which is 2 for a user's mistake, told in one line."""
    keep_compiled()
    spare_threads()
    try:
        run(parse(argv))
    except (UserError, OSError) as error:
        if not is_users(error):
            raise
        print(f'gen_jax.metrics: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
