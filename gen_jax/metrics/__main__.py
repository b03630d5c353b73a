"""Numbers for anybody's images, without a config.

  python -m gen_jax.metrics A B --weights=FILE           FID of A, with B as the reference
  python -m gen_jax.metrics A B --metrics=fid,kid,is,prdc,sfid
  python -m gen_jax.metrics A --metrics=is               a number that needs no reference
  python -m gen_jax.metrics B --save-stats=FILE.npz      statistics to be a reference later

A and B are each a folder of images, an .npz or .npy of uint8 images, or saved statistics (.npz with
mu and sigma). Numbers are printed, and written with the provenance of each.
"""

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from gen_jax import __version__
from gen_jax.errors import UserError, is_users
from gen_jax.metrics import compare, sets
from gen_jax.metrics.features import extract
from gen_jax.metrics.fid import save_statistics
from gen_jax.metrics.sets import ImageSet, open_set
from gen_jax.runtime import workdir


class Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str):
        """Raises UserError instead of printing the usage."""
        raise UserError(f'{message}; --help lists the arguments')


def at_least(least: int) -> Callable[[str], int]:
    """Reads whole numbers from `least` up."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from {least} up')
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
    add('--network', default='inception', help=f'{", ".join(extract.NETWORKS)} (the first)')
    add('--resize', help='for inception: tf1, pytorch_fid or clean (default: tf1)')
    add('--dims', type=int, help=f'for inception: features, of {extract.DIMS} (the first)')
    add('--n', type=at_least(2), help='take the first N images of each set (default: all)')
    add('--batch_size', type=at_least(1), default=50, help='images at a time (%(default)s)')
    add('--kid_subsets', type=at_least(2), default=options.kid_subsets, help='(%(default)s)')
    add(
        '--kid_subset_size', type=at_least(2), default=options.kid_subset_size, help='(%(default)s)'
    )
    add('--seed', type=at_least(0), default=options.seed, help='of kid and is (%(default)s)')
    add('--out', default='metrics.json', metavar='FILE', help='(%(default)s)')
    add('--save-stats', metavar='FILE.npz', help='write the statistics of A, and compare nothing')
    args = parser.parse_args(argv)
    if args.metrics is None and not args.save_stats:
        args.metrics = 'fid'
    args.metrics = tuple(dict.fromkeys(args.metrics.split(','))) if args.metrics else ()
    compare.check(args.metrics)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Raises UserError where arguments do not fit each other, or what they name to write."""
    compared = [name for name in args.metrics if name != 'is']
    if args.save_stats and (args.B or args.metrics):
        raise UserError('--save-stats takes one set, and neither B nor --metrics')
    if compared and not args.B:
        raise UserError(f'{compared[0]} compares A with a reference: name B, or ask for is')
    if args.B and not compared:
        raise UserError('no metric asked for compares A with B: leave B out, or ask for fid')
    if args.network != 'inception' and (args.resize or args.dims):
        raise UserError(f'--resize and --dims are for inception: leave them out for {args.network}')
    if args.dims not in (None, extract.DIMS[0]) and {'is', 'sfid'} & {*args.metrics}:
        raise UserError('--dims concerns neither is nor sfid: ask for them without it')
    place = Path(args.save_stats or args.out)
    if place.is_dir() or not os.access(place.parent, os.W_OK):
        raise UserError(f'cannot write {place}: expected a file in a folder that can be written')
    if args.save_stats and (place.suffix != '.npz' or place.exists()):
        raise UserError(f'--save-stats={place}: expected the name of a new .npz file')


def run(args: argparse.Namespace) -> None:
    """Opens what the arguments name, and writes what they ask for."""
    compared = tuple(name for name in args.metrics if name != 'is')
    judged = open_set(args.A, args.n)
    judged.check(args.metrics)
    if args.save_stats:
        return save(args, judged)
    if args.B:
        reference = open_set(args.B, args.n)
        reference.check(compared)
    extractor = open_extractor(args, args.metrics)
    # The reference first: statistics that do not fit are refused before the network runs.
    real = look(args, reference, extractor, compared) if args.B else None
    fake = look(args, judged, extractor, args.metrics)
    options = compare.Options(args.kid_subsets, args.kid_subset_size, seed=args.seed)
    rows = compare.compare(real or fake, fake, args.metrics, options, extractor.suffix)
    for metric in args.metrics:
        told = {'images': describe(judged, fake, metric)}
        told['n'] = told['images']['n']
        if metric != 'is':
            told['reference'] = describe(reference, real, metric)
            told['n_reference'] = told['reference']['n']
        told |= {**extractor.provenance, 'seed': args.seed, 'gen_jax': __version__}
        for name in compare.GIVES.get(metric, (metric,)):
            rows[name + extractor.suffix] |= told
    workdir.write_json(Path(args.out), rows)
    print_table(rows)
    print(f'where they come from: {args.out}')


def open_extractor(args: argparse.Namespace, metrics: tuple[str, ...]) -> extract.Extractor:
    """The network that the arguments name."""
    return extract.open_extractor(
        args.network,
        args.weights,
        args.resize or 'tf1',
        compare.roles(metrics),
        args.dims or extract.DIMS[0],
        args.batch_size,
    )


def save(args: argparse.Namespace, images: ImageSet) -> None:
    """Writes the moments of a set, and says where they come from."""
    if images.kind == 'statistics':
        raise UserError(f'{images.path} holds statistics already: --save-stats takes images')
    # Classifiers have no features for sFID; who asks for fewer of Inception's wants less work.
    both = args.network == 'inception' and args.dims in (None, extract.DIMS[0])
    metrics = ('fid', 'sfid') if both else ('fid',)
    extractor = open_extractor(args, metrics)
    moments = look(args, dataclasses.replace(images, statistics=()), extractor, metrics).moments
    story = {**extractor.provenance, 'images': images.describe(), 'gen_jax': __version__}
    save_statistics(args.save_stats, moments['pool'], moments.get('spatial'), **story)
    print(f'statistics of {len(images)} images in {args.save_stats}')


def look(
    args: argparse.Namespace, images: ImageSet, extractor: extract.Extractor, metrics: Iterable[str]
) -> compare.Seen:
    """`sets.look`, with a bar where somebody may be watching."""
    bar = {'desc': images.path, 'total': -(-len(images) // args.batch_size), 'leave': False}
    watch = functools.partial(tqdm, **bar, disable=None)
    return sets.look(images, extractor, metrics, args.batch_size, watch)


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
