"""How fast Inception's features are, against torch-fidelity's in the same run.

  python experiments/metrics_speed.py

Both see the same images through the same random weights, turn by turn, ours as many at a time as it
chooses, torch-fidelity's 1, 8 or all, of which the fastest counts. Then the time of the Frechet
distance itself at 2,048 features, against pytorch-fid's, for full and for deficient rank, turn by
turn too. Figures are medians over the turns, and only ratios say anything off this machine. Needs
the extra `parity`. Writes metrics_speed.json where --out says.
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import scripts
import torch
from absl import flags
from peers import import_torchvision, interleaved, ratios, seconds

from gen_jax.metrics.features.extract import open_extractor
from gen_jax.metrics.fid import Moments, frechet_distance
from gen_jax.runtime import workdir

FLAGS = flags.FLAGS
RANKS = {'full_rank': 5000, 'deficient': 1000}  # examples that the statistics are of


def define_flags() -> None:
    """What is measured."""
    flags.DEFINE_integer('n', 32, 'Images.', lower_bound=1)
    flags.DEFINE_integer('size', 32, 'Height and width of the images.', lower_bound=1)
    flags.DEFINE_integer('turns', 5, 'Measurements of each.', lower_bound=1)
    flags.DEFINE_string('out', 'metrics_speed.json', 'Where the figures go.')


def networks(folder: Path) -> tuple[Callable, Callable]:
    """(ours, torch-fidelity's), with the same random weights: uint8 [n, h, w, 3] -> [n, 2048].

    Theirs takes the number of images at a time as well.
    """
    import_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    path = folder / 'weights.pth'
    load = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    torch.save({}, path)
    theirs = FeatureExtractorInceptionV3('inception', ['2048'], str(path)).eval()
    FeatureExtractorInceptionV3.load_state_dict = load
    torch.save(theirs.state_dict(), path)
    ours = open_extractor('inception', str(path))

    def reference(images, size):
        images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            return np.concatenate([theirs(part)[0].numpy() for part in images.split(size)])

    return lambda images: ours(images)['pool'], reference


def features() -> dict:
    """Images/s of both networks and their ratio."""
    shape = (FLAGS.n, FLAGS.size, FLAGS.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = networks(Path(folder))
    sizes = (1, 8, FLAGS.n)
    mine = ours(images)  # compiles, and warms up
    other = [theirs(images, size) for size in sizes][-1]
    times = [
        (seconds(ours, images), *(seconds(theirs, images, size) for size in sizes))
        for _ in range(FLAGS.turns)
    ]
    ratios = [min(others) / first for first, *others in times]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return {
        'largest_difference_of_scale': float(np.abs(mine - other).max() / np.abs(other).max()),
        'gen_jax_images_per_second': FLAGS.n / medians[0],
        'torch_fidelity_images_per_second': [FLAGS.n / x for x in medians[1:]],
        'torch_fidelity_images_at_a_time': sizes,
        'ratio': statistics.median(ratios),
        'ratio_least': min(ratios),
        'ratio_greatest': max(ratios),
    }


def distances(size: int = 2048) -> dict:
    """Seconds of the distance at so many features, and how many times as fast ours is."""
    import_torchvision()
    from pytorch_fid.fid_score import calculate_frechet_distance

    rng, found = np.random.default_rng(0), {}
    for name, n in RANKS.items():
        a, b = (Moments.of(rng.gamma(1.0, size=(n, size))) for _ in range(2))
        args = a.mu, a.sigma, b.mu, b.sigma
        distance = {'gen_jax': frechet_distance, 'pytorch_fid': calculate_frechet_distance}
        times = interleaved({k: partial(x, *args) for k, x in distance.items()}, FLAGS.turns)
        found[name] = {f'{k}_seconds': statistics.median(x) for k, x in times.items()}
        found[name] |= ratios(times, 'gen_jax')['pytorch_fid']
    return found


def main() -> None:
    """Measures, prints, writes."""
    out = scripts.file(FLAGS.out)
    found = {'features': features(), 'distance': distances()}
    workdir.write_json(out, found)
    for part in found.values():
        for name, value in part.items():
            print(name, value)


if __name__ == '__main__':
    scripts.start(define_flags, main)
