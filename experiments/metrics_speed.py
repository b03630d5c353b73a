"""How fast Inception's features are, against torch-fidelity's in the same run.

  python experiments/metrics_speed.py

Both see the same images through the same random weights, turn by turn; images/s are medians over
the turns, and only their ratio says anything off this machine. Then the time of the Frechet
distance itself at 2,048 features, against pytorch-fid's, for full and for deficient rank. Needs the
extra `parity`. Writes metrics_speed.json where --out says.
"""

import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from absl import app, flags

from gen_jax.metrics.features.extract import open_extractor
from gen_jax.metrics.fid import Moments, frechet_distance
from gen_jax.runtime import workdir

FLAGS = flags.FLAGS
flags.DEFINE_integer('batch_size', 32, 'Images at a time.')
flags.DEFINE_integer('size', 32, 'Height and width of the images.')
flags.DEFINE_integer('turns', 5, 'Measurements of each.')
flags.DEFINE_string('out', 'metrics_speed.json', 'Where the figures go.')


def stub_torchvision() -> None:
    """torch-fidelity imports it for its data sets, which are not used here."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
            del sys.modules[name]
        parts = ('', '.transforms', '.transforms.functional', '.datasets', '.models')
        for part in parts:
            sys.modules[f'torchvision{part}'] = types.ModuleType(f'torchvision{part}')


def networks(folder: Path) -> tuple[Callable, Callable]:
    """(ours, torch-fidelity's): uint8 [b, h, w, 3] -> [b, 2048], with the same random weights."""
    stub_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    path = folder / 'weights.pth'
    load = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    torch.save({}, path)
    theirs = FeatureExtractorInceptionV3('inception', ['2048'], str(path)).eval()
    FeatureExtractorInceptionV3.load_state_dict = load
    torch.save(theirs.state_dict(), path)
    ours = open_extractor('inception', str(path), batch_size=FLAGS.batch_size)

    def reference(images):
        with torch.no_grad():
            return theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))[0].numpy()

    return lambda images: ours(images)['pool'], reference


def seconds(function: Callable, *args) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def features() -> dict:
    """Images/s of both networks and their ratio."""
    shape = (FLAGS.batch_size, FLAGS.size, FLAGS.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = networks(Path(folder))
    a, b = ours(images), theirs(images)  # compiles, and warms up
    times = [(seconds(ours, images), seconds(theirs, images)) for _ in range(FLAGS.turns)]
    rates = [FLAGS.batch_size / statistics.median(column) for column in zip(*times, strict=True)]
    ratios = [other / mine for mine, other in times]
    return {
        'largest_difference_of_scale': float(np.abs(a - b).max() / np.abs(b).max()),
        'gen_jax_images_per_second': rates[0],
        'torch_fidelity_images_per_second': rates[1],
        'ratio': statistics.median(ratios),
        'ratio_least': min(ratios),
        'ratio_greatest': max(ratios),
    }


def distances() -> dict:
    """Seconds of the distance at 2,048 features, ours and pytorch-fid's."""
    stub_torchvision()
    from pytorch_fid.fid_score import calculate_frechet_distance

    rng, found = np.random.default_rng(0), {}
    for name, n in (('full_rank', 5000), ('deficient', 1000)):
        a, b = (Moments.of(rng.gamma(1.0, size=(n, 2048))) for _ in range(2))
        args = a.mu, a.sigma, b.mu, b.sigma
        found[name] = {
            'gen_jax_seconds': min(seconds(frechet_distance, *args) for _ in range(3)),
            'pytorch_fid_seconds': seconds(calculate_frechet_distance, *args),
        }
    return found


def main(_) -> None:
    """Measures, prints, writes."""
    found = {'features': features(), 'distance': distances()}
    workdir.write_json(Path(FLAGS.out), found)
    for part in found.values():
        for name, value in part.items():
            print(name, value)


if __name__ == '__main__':
    app.run(main)
