"""Distances against pytorch-fid, torch-fidelity, clean-fid and prdc, on the same features."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
torch_fidelity = pytest.importorskip('torch_fidelity')
pytorch_fid = pytest.importorskip('pytorch_fid.fid_score')
cleanfid = pytest.importorskip('cleanfid.fid')
their_prdc = pytest.importorskip('prdc')

from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc  # noqa: E402

from gen_jax.metrics.fid import Moments, fid, load_statistics, save_statistics  # noqa: E402
from gen_jax.metrics.inception_score import inception_score  # noqa: E402
from gen_jax.metrics.kid import kid, polynomial_mmd2  # noqa: E402
from gen_jax.metrics.prdc import prdc  # noqa: E402


def features(n, d, seed, shift=0.0):
    """Non-negative, sparse and correlated, as the outputs of a ReLU network are."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(d).normal(size=(32, d)) / 6
    noise = random.normal(size=(n, d))
    return np.maximum(random.normal(size=(n, 32)) @ mixing + 0.3 * noise + shift, 0)


def tensor(x):
    return torch.from_numpy(np.ascontiguousarray(x))


# (samples of the first set, of the second, features)
SMALL = [(400, 500, 192), (60, 80, 192)]
LARGE = (100, 70, 2048)


def assert_fid(theirs, a, b, rel):
    assert fid(Moments.of(a), Moments.of(b)) == pytest.approx(theirs, rel=rel)


def torch_fidelitys_fid(a, b):
    first, second = (metric_fid.fid_features_to_statistics(tensor(x)) for x in (a, b))
    theirs = metric_fid.fid_statistics_to_metric(first, second, verbose=False)
    return theirs['frechet_inception_distance']


def pytorch_fids(a, b):
    (mu1, sigma1), (mu2, sigma2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    return pytorch_fid.calculate_frechet_distance(mu1, sigma1, mu2, sigma2)


# Both take roots of eigenvalues that ought to be 0: with fewer samples than features their rounding
# shows, at 1e-7 of the distance.
@pytest.mark.parametrize(('n', 'm', 'd'), SMALL)
@pytest.mark.parametrize('theirs', [torch_fidelitys_fid, pytorch_fids])
@pytest.mark.filterwarnings('ignore:The `disp` argument:DeprecationWarning')
def test_fid(theirs, n, m, d):
    a, b = features(n, d, 0), features(m, d, 1, shift=0.1)
    assert_fid(theirs(a, b), a, b, rel=1e-10 if n > d else 1e-5)


@pytest.mark.slow
def test_fid_of_2048_features():
    """More images than features; of fewer: test_whole_numbers.py."""
    a, b = features(2500, 2048, 0), features(100, 2048, 1, shift=0.1)
    assert_fid(torch_fidelitys_fid(a, b), a, b, rel=1e-5)


@pytest.mark.parametrize(('n', 'm', 'd'), SMALL)
@pytest.mark.filterwarnings('ignore:The `disp` argument:DeprecationWarning')
def test_fid_of_identical_sets(n, m, d):
    a = features(n, d, 0)
    assert fid(Moments.of(a), Moments.of(a[::-1])) < 1e-9
    assert pytorch_fids(a, a) == pytest.approx(0, abs=1e-4)


def test_pytorch_fid_reads_our_statistics(tmp_path):
    path, moments = str(tmp_path / 'ours.npz'), Moments.of(features(30, 16, 0))
    save_statistics(path, moments, split='train')
    mu, sigma = pytorch_fid.compute_statistics_of_path(path, None, 50, 16, 'cpu')
    np.testing.assert_array_equal(mu, moments.mu)
    np.testing.assert_array_equal(sigma, moments.sigma)


def test_reads_pytorch_fids_statistics(tmp_path):
    path, x = str(tmp_path / 'theirs.npz'), features(30, 16, 0)
    np.savez_compressed(path, mu=np.mean(x, axis=0), sigma=np.cov(x, rowvar=False))
    assert fid(load_statistics(path), Moments.of(x)) < 1e-12


def assert_kid(a, b, ours, theirs):
    got = kid(a, b, subsets=5, subset_size=50, **ours)
    want = metric_kid.kid_features_to_metric(
        tensor(a), tensor(b), kid_subsets=5, kid_subset_size=50, verbose=False, **theirs
    )
    assert got['mean'] == pytest.approx(want['kernel_inception_distance_mean'], rel=1e-9)
    assert got['std'] == pytest.approx(want['kernel_inception_distance_std'], rel=1e-9)


@pytest.mark.parametrize(('n', 'm', 'd'), [*SMALL, LARGE])
def test_kid(n, m, d):
    assert_kid(features(n, d, 0), features(m, d, 1, shift=0.1), {}, {})


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        ({'seed': 3}, {'rng_seed': 3}),
        ({'degree': 2}, {'kid_kernel_poly_degree': 2}),
        ({'gamma': 0.3}, {'kid_kernel_poly_gamma': 0.3}),
        ({'coef0': 0.5}, {'kid_kernel_poly_coef0': 0.5}),
    ],
)
def test_kid_of_other_kernels_and_draws(ours, theirs):
    assert_kid(features(60, 32, 0), features(70, 32, 1, shift=0.1), ours, theirs)


def test_kid_of_float32_features():
    """Theirs is then float32 throughout, and agrees to what that leaves of a difference."""
    a, b = (x.astype(np.float32) for x in (features(300, 192, 0), features(300, 192, 1, shift=0.1)))
    got = kid(a, b, subsets=10, subset_size=100)
    want = metric_kid.kid_features_to_metric(
        tensor(a), tensor(b), kid_subsets=10, kid_subset_size=100, verbose=False
    )
    assert got['mean'] == pytest.approx(want['kernel_inception_distance_mean'], rel=1e-3)


def test_kid_of_identical_sets():
    a = features(80, 192, 0)
    assert_kid(a, a, {}, {})


@pytest.mark.parametrize(('n', 'd'), [(60, 192), (70, 2048)])
def test_kid_is_clean_fids(n, d):
    """clean-fid clips subsets to the smaller set: one of all of it is the whole estimate."""
    a, b = features(n, d, 0), features(n, d, 1, shift=0.1)
    want = cleanfid.kernel_distance(a, b, num_subsets=1)
    assert polynomial_mmd2(a, b) == pytest.approx(want, rel=1e-9)


def test_kid_is_clean_fids_in_expectation():
    a, b = features(300, 192, 0), features(250, 192, 1, shift=0.3)
    np.random.seed(0)  # noqa: NPY002 clean-fid draws from it
    want = cleanfid.kernel_distance(a, b, num_subsets=200, max_subset_size=50)
    got = kid(a, b, subsets=200, subset_size=50)
    assert abs(got['mean'] - want) < 4 * 2**0.5 * got['standard_error']
    assert got['standard_error'] < 0.05 * want


@pytest.mark.parametrize(('n', 'classes'), [(203, 10), (300, 1008)])
@pytest.mark.parametrize(('splits', 'seed'), [(10, 2020), (7, 5), (1, None)])
def test_inception_score(n, classes, splits, seed):
    logits = np.random.default_rng(0).normal(size=(n, classes)) * 4
    got = inception_score(logits, splits, seed)
    want = metric_isc.isc_features_to_metric(tensor(logits), splits, seed is not None, seed)
    assert got['mean'] == pytest.approx(want['inception_score_mean'], rel=1e-10)
    assert got['std'] == pytest.approx(want['inception_score_std'], rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(('n', 'm', 'd'), [*SMALL, LARGE])
@pytest.mark.parametrize('k', [1, 3])
@pytest.mark.parametrize('full', [True, False])
def test_precision_and_recall_are_torch_fidelitys(n, m, d, k, full):
    fake, real = features(n, d, 0, shift=0.02), features(m, d, 1)
    got = prdc(real, fake, k=k)
    want = metric_prc.prc_features_to_metric(
        tensor(fake), tensor(real), prc_neighborhood=k, save_cpu_ram=not full, verbose=False
    )
    assert 0.05 < got['precision'] < 1
    assert 0.05 < got['recall'] < 1
    assert {
        name: got[ours]
        for name, ours in (('precision', 'precision'), ('recall', 'recall'), ('f_score', 'f1'))
    } == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(('n', 'm', 'd'), [*SMALL, LARGE])
@pytest.mark.parametrize('k', [2, 5])
def test_density_and_coverage_are_prdcs(n, m, d, k):
    real, fake = features(n, d, 0), features(m, d, 1, shift=0.02)
    got = prdc(real, fake, k=k, k_density=k)
    want = their_prdc.compute_prdc(real, fake, nearest_k=k)
    assert 0 < got['coverage'] < 1
    for name in ('precision', 'recall', 'density', 'coverage'):
        assert got[name] == pytest.approx(want[name], rel=1e-12), name


@pytest.mark.parametrize(('n', 'd'), [(120, 192), (60, 2048)])
def test_overlap_of_identical_sets(n, d):
    """Every comparison of a k-th neighbour is a tie, which their rounding decides, not ours."""
    x = features(n, d, 0)
    got = prdc(x, x)
    want = metric_prc.prc_features_to_metric(tensor(x), tensor(x), verbose=False)
    assert got['precision'] == want['precision'] == 1
    assert got['recall'] == want['recall'] == 1
    want = their_prdc.compute_prdc(x, x, nearest_k=5)
    assert got['coverage'] == want['coverage'] == 1
    assert got['density'] == 1
    assert want['density'] == pytest.approx(1, abs=0.2)


def test_collapsed_model():
    """torch-fidelity's issue 58: one good image over and over is precise and recalls nothing."""
    real = features(100, 192, 0)
    fake = np.repeat(real[:1], 40, axis=0) + 1e-3 * np.random.default_rng(0).normal(size=(40, 192))
    got = prdc(real, fake)
    want = metric_prc.prc_features_to_metric(tensor(fake), tensor(real), verbose=False)
    assert (got['precision'], got['recall']) == (want['precision'], pytest.approx(want['recall']))
    assert got['precision'] == 1
    assert got['recall'] <= 0.01
