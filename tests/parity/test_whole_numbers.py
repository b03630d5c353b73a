"""From files of images to numbers: the metrics command against torch-fidelity's own front end.

Both read the same PNG files and the same file of random weights. There are fewer images than
features, so that covariances are singular.
"""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip('torch')
torch_fidelity = pytest.importorskip('torch_fidelity')

from torch_fidelity.feature_extractor_inceptionv3 import (  # noqa: E402
    FeatureExtractorInceptionV3,
)

from gen_jax.metrics import __main__ as command  # noqa: E402
from gen_jax.runtime import images  # noqa: E402

SUBSETS, SUBSET = 20, 12


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    torch.save({}, folder / 'empty.pth')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, 'load_state_dict', lambda self, tensors: None)
        net = FeatureExtractorInceptionV3('random', ['2048'], str(folder / 'empty.pth'))
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(module, torch.nn.Conv2d):
            module.weight.data.normal_(
                0, (2 / module.weight[0].numel()) ** 0.5, generator=generator
            )
    # Logits of what differs between images: of the features' mean they would all be the same.
    with torch.no_grad():
        noise = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
        mean = net(noise)[0].mean(0)
        head = torch.randn(net.fc.weight.shape, generator=generator)
        net.fc.weight.copy_(head - torch.outer(head @ mean, mean) / (mean @ mean))
    torch.save(net.state_dict(), folder / 'weights.pth')
    return folder / 'weights.pth'


def save_images(folder, n, shape, mode, seed):
    """Blobs of random colour and size: the network sees that they differ."""
    rng = np.random.default_rng(seed)
    h, w = shape
    y, x = np.mgrid[:h, :w]
    for i in range(n):
        centre, size = rng.uniform(0, 1, 2) * (h, w), rng.uniform(0.1, 0.5) * h
        blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / size**2)
        colour = rng.uniform(0, [255, 120][seed], 1 if mode == 'L' else 3)
        page = blob[..., None] * colour + rng.normal(0, 10, (h, w, 1))
        page = np.clip(page, 0, 255).astype(np.uint8)
        images.save_png(folder / f'{i:03}.png', page)
    assert Image.open(folder / '000.png').mode == mode


def ours(folder, weights, dims):
    names = 'fid,kid,is,prdc' if dims == 2048 else 'fid,kid,prdc'
    flags = [f'--metrics={names}', f'--weights={weights}', f'--dims={dims}', '--batch_size=16']
    flags += [f'--kid_subsets={SUBSETS}', f'--kid_subset_size={SUBSET}']
    flags += [f'--out={folder / "metrics.json"}']
    assert command.main([str(folder / 'a'), str(folder / 'b'), *flags]) == 0
    rows = json.loads((folder / 'metrics.json').read_text())
    suffix = '' if dims == 2048 else f'_{dims}'
    return {name.removesuffix(suffix): row for name, row in rows.items()}


def theirs(folder, weights, dims):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of its own use of its libraries
        return torch_fidelity.calculate_metrics(
            input1=str(folder / 'a'),
            input2=str(folder / 'b'),
            cuda=False,
            fid=True,
            kid=True,
            isc=dims == 2048,
            prc=True,
            feature_extractor='inception-v3-compat',
            feature_extractor_weights_path=str(weights),
            feature_layer_fid=str(dims),
            feature_layer_kid=str(dims),
            feature_layer_prc=str(dims),
            kid_subsets=SUBSETS,
            kid_subset_size=SUBSET,
            batch_size=16,
            save_cpu_ram=True,
            cache=False,
            verbose=False,
        )


@pytest.mark.slow
# torch-fidelity leaves the files it reads open.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
    ('shape', 'mode', 'dims'),
    [
        ((32, 32), 'RGB', 2048),
        ((32, 32), 'RGB', 192),
        ((28, 28), 'L', 768),
        ((420, 310), 'RGB', 192),
    ],
    ids=['cifar-2048', 'cifar-192', 'grey', 'large'],
)
def test_the_same_files_give_the_same_numbers(tmp_path, weights, shape, mode, dims):
    for name, seed in (('a', 0), ('b', 1)):
        save_images(tmp_path / name, 16, shape, mode, seed)
    rows, found = ours(tmp_path, weights, dims), theirs(tmp_path, weights, dims)
    expected = {
        'fid': found['frechet_inception_distance'],
        'kid': found['kernel_inception_distance_mean'],
        'precision': found['precision'],
        'recall': found['recall'],
        'f1': found['f_score'],
    }
    if dims == 2048:
        expected['is'] = found['inception_score_mean']
        assert found['inception_score_mean'] > 1.05
    for name, value in expected.items():
        assert rows[name]['value'] == pytest.approx(value, rel=1e-3), name
    assert expected['fid'] > 0
