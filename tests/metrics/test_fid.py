import json
import pickle

import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.metrics.fid import (
    Moments,
    check_features,
    fid,
    frechet_distance,
    load_statistics,
    save_statistics,
)


def draw(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def rotation(d, seed=0):
    return np.linalg.qr(draw(d, d, seed))[0]


# The distance.


@pytest.mark.parametrize('d', [1, 2, 50])
def test_gaussians_with_the_same_axes(d):
    """For commuting covariances it is |mu1 - mu2|^2 + sum_i (s1_i - s2_i)^2, s the deviations."""
    random, axes = np.random.default_rng(d), rotation(d)
    mu1, mu2, s1, s2 = random.uniform(0.1, 3, (4, d))
    want = np.sum((mu1 - mu2) ** 2) + np.sum((s1 - s2) ** 2)
    got = frechet_distance(mu1, (axes * s1**2) @ axes.T, mu2, (axes * s2**2) @ axes.T)
    assert got == pytest.approx(want, rel=1e-12)


def test_two_dimensions_with_other_axes():
    """The trace of the root of a 2x2 matrix M is (tr M + 2 det(M)^(1/2))^(1/2)."""
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[0.5, -0.3], [-0.3, 4.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    want = 5 + np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance([1, 2], a, [0, 4], b) == pytest.approx(want, rel=1e-12)


def test_lines_in_many_dimensions():
    """With sigma1 = u u^T and sigma2 = v v^T the last trace is |u.v|."""
    u, v = draw(2, 300)
    want = u @ u + v @ v - 2 * abs(u @ v)
    zero = np.zeros(300)
    got = frechet_distance(zero, np.outer(u, u), zero, np.outer(v, v))
    assert got == pytest.approx(want, rel=1e-12)


def test_fewer_samples_than_features():
    """The roots of the eigenvalues of X sigma X^T / (n - 1), [n, n], X the centred samples."""
    n, d = 20, 200
    few, cloud = draw(n, d), Moments.of(draw(900, d, seed=1) * 2)
    centred = (few - few.mean(0)) / np.sqrt(n - 1)
    values = np.linalg.eigvalsh(centred @ cloud.sigma @ centred.T)[1:]  # one is 0: the mean's
    want = np.sum((few.mean(0) - cloud.mu) ** 2) + np.sum(centred**2) + np.trace(cloud.sigma)
    want -= 2 * np.sqrt(values).sum()
    assert fid(Moments.of(few), cloud) == pytest.approx(want, rel=1e-12)


def test_point_against_gaussian():
    point, cloud = Moments.of(np.full((5, 4), 0.1)), Moments.of(draw(30, 4))
    want = np.sum((point.mu - cloud.mu) ** 2) + np.trace(cloud.sigma)
    assert fid(point, cloud) == pytest.approx(want, rel=1e-12)
    assert fid(point, Moments.of(np.full((9, 4), 1.1))) == pytest.approx(4, rel=1e-12)


@pytest.mark.parametrize(('n', 'd'), [(2, 3), (20, 200), (500, 60)])
@pytest.mark.parametrize('scale', [1.0, 1e-3, 1e3])
def test_same_set_is_at_zero(n, d, scale):
    a = Moments.of(draw(n, d) * scale + 3)
    shuffled = Moments.of((draw(n, d) * scale + 3)[::-1])
    assert 0 <= fid(a, shuffled) < 1e-9 * np.trace(a.sigma)


def test_scales_as_a_square_and_is_symmetric():
    a, b = draw(40, 60), draw(50, 60, seed=1) * 2 + 1
    near, far = fid(Moments.of(a), Moments.of(b)), fid(Moments.of(b * 10), Moments.of(a * 10))
    assert far == pytest.approx(100 * near, rel=1e-10)


def test_converges_to_the_gaussians_distance():
    d, a, b = 4, rotation(4, 1) * [1, 0.5, 2, 0.1], rotation(4, 2) * [0.3, 1, 1, 2]
    shift = np.full(d, 0.5)
    want = frechet_distance(np.zeros(d), a @ a.T, shift, b @ b.T)
    errors = []
    for n in (1000, 100_000):
        x, y = draw(n, d, seed=3) @ a.T, draw(n, d, seed=4) @ b.T + shift
        errors.append(abs(fid(Moments.of(x), Moments.of(y)) - want) / want)
    assert errors[0] < 0.1
    assert errors[1] < 0.01


def test_float32_statistics():
    """Kept in float32, a singular covariance has negative eigenvalues; that is no user's fault."""
    a, b = Moments.of(draw(20, 100)), Moments.of(draw(30, 100, seed=1))
    kept = [x.astype(np.float32) for x in (a.mu, a.sigma, b.mu, b.sigma)]
    assert np.linalg.eigvalsh(kept[1].astype(np.float64))[0] < 0
    assert frechet_distance(*kept) == pytest.approx(fid(a, b), rel=1e-3)


EYE, ZERO = np.eye(2), np.zeros(2)
NOT_STATISTICS = {
    'sizes': (np.zeros(3), np.eye(3), 'different sizes, 2 and 3'),
    'shape': (ZERO, np.eye(3), r'shape \(3, 3\), expected \[d\] and \[d, d\]'),
    'empty': (np.zeros(0), np.zeros((0, 0)), 'expected'),
    'mu nan': ([0, np.nan], EYE, 'second statistics are not finite'),
    'sigma inf': (ZERO, np.full((2, 2), np.inf), 'second statistics are not finite'),
    'asymmetric': (ZERO, [[1, 0.1], [0.0, 1]], 'second covariance is not symmetric'),
    'negative': (ZERO, [[1, 2], [2, 1]], 'second covariance has an eigenvalue -1'),
    'all negative': (ZERO, -EYE, 'second covariance has an eigenvalue -1'),
}


@pytest.mark.parametrize('case', NOT_STATISTICS)
def test_refuses_what_is_no_gaussian(case):
    mu, sigma, message = NOT_STATISTICS[case]
    with pytest.raises(UserError, match=message) as error:
        frechet_distance(ZERO, EYE, mu, sigma)
    assert '\n' not in str(error.value)


# Moments.


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_moments_are_numpys(dtype):
    x = (draw(31, 5) * 3 + 7).astype(dtype)
    moments, exact = Moments.of(x), x.astype(np.float64)
    assert (moments.n, moments.mu.dtype, moments.sigma.dtype) == (31, np.float64, np.float64)
    np.testing.assert_allclose(moments.mu, exact.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.sigma, np.cov(exact, rowvar=False), rtol=1e-12)


def in_batches(x, size):
    moments = Moments()
    for i in range(0, len(x), size):
        moments.update(x[i : i + size])
    return moments


@pytest.mark.parametrize('offset', [0, 1e4])
def test_batch_size_changes_nothing(offset):
    a, b = draw(600, 24) + offset, draw(600, 24, seed=1) * 1.2 + offset
    want = fid(Moments.of(a), Moments.of(b))
    for size in (1, 7, 50, 256):
        assert fid(in_batches(a, size), in_batches(b, size)) == pytest.approx(want, rel=1e-9)


def test_a_mean_far_from_zero_costs_no_digits():
    x = np.random.default_rng(0).integers(-5, 6, (400, 3)).astype(np.float64)
    far = in_batches(x + 2.0**40, 16)  # exact in float64
    np.testing.assert_allclose(far.sigma, np.cov(x, rowvar=False), atol=1e-3)
    np.testing.assert_allclose(in_batches(x + 2.0**20, 16).sigma, np.cov(x.T), rtol=1e-9)


def test_merge_is_one_long_set():
    x = draw(100, 6)
    parts = [in_batches(x[a:b], 8) for a, b in ((0, 3), (3, 60), (60, 100))]
    before = parts[1].sigma
    whole = Moments()
    for part in (Moments(), *parts, Moments()):
        whole.merge(part)
    assert whole.n == 100
    np.testing.assert_allclose(whole.mu, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.sigma, np.cov(x.T), rtol=1e-12)
    np.testing.assert_array_equal(parts[1].sigma, before)


def test_merge_shares_nothing():
    x, first, second = draw(10, 3), Moments(), Moments.of(draw(10, 3))
    first.merge(second)
    first.update(x + 5)
    np.testing.assert_array_equal(second.sigma, Moments.of(x).sigma)


def test_moments_leave_features_alone():
    x = draw(10, 3)
    Moments.of(x)
    np.testing.assert_array_equal(x, draw(10, 3))


def test_too_few_samples():
    with pytest.raises(UserError, match='0 samples seen, expected at least 1'):
        _ = Moments().mu
    with pytest.raises(UserError, match='1 samples seen, expected at least 2'):
        _ = Moments.of(draw(1, 3)).sigma


def test_another_size_of_features():
    moments = Moments.of(draw(4, 3))
    with pytest.raises(UserError, match='different sizes, 3 and 1'):
        moments.update(draw(4, 1))
    with pytest.raises(UserError, match='different sizes, 3 and 5'):
        moments.merge(Moments.of(draw(4, 5)))
    assert moments.n == 4


NAN = draw(4, 3)
NAN[2, 1] = np.nan
NOT_FEATURES = {
    'image': (np.zeros((2, 8, 8, 3)), r'x are float64 \(2, 8, 8, 3\), expected float32 or float64'),
    'vector': (np.zeros(4), 'expected float32 or float64'),
    'integers': (np.zeros((4, 3), int), 'x are int64'),
    'half': (np.zeros((4, 3), np.float16), 'x are float16'),
    'none': (np.zeros((0, 3)), r'x have shape \(0, 3\), expected at least 1 samples'),
    'no columns': (np.zeros((4, 0)), 'at least 1 feature'),
    'nan': (NAN, 'row 2 is not finite'),
    'inf': (np.full((2, 2), np.inf), 'row 0 is not finite'),
}


@pytest.mark.parametrize('case', NOT_FEATURES)
def test_refuses_what_are_no_features(case):
    features, message = NOT_FEATURES[case]
    with pytest.raises(UserError, match=message) as error:
        check_features(features, 'x')
    assert '\n' not in str(error.value)


# Files.


def test_round_trip(tmp_path):
    path, a, b = tmp_path / 'digits.npz', Moments.of(draw(9, 4)), Moments.of(draw(9, 6))
    save_statistics(path, a, b, resize='clean', sha256='ab')
    got = load_statistics(path)
    np.testing.assert_array_equal(got.mu, a.mu)
    np.testing.assert_array_equal(got.sigma, a.sigma)
    assert got.provenance == {'resize': 'clean', 'sha256': 'ab', 'n': 9}
    assert fid(got, a) < 1e-12
    assert fid(load_statistics(path, spatial=True), b) < 1e-12
    assert [file.name for file in tmp_path.iterdir()] == ['digits.npz']


def test_a_file_that_exists_is_replaced(tmp_path):
    path = tmp_path / 'a.npz'
    for seed in (0, 1):
        save_statistics(path, Moments.of(draw(5, 2, seed)), seed=seed)
    assert load_statistics(path).provenance['seed'] == 1
    with pytest.raises(TypeError):
        save_statistics(path, Moments.of(draw(5, 2)), what=object())
    assert load_statistics(path).provenance['seed'] == 1


def test_files_of_other_packages(tmp_path):
    """pytorch-fid has mu and sigma; guided-diffusion has images and spatial statistics beside."""
    path, spatial = tmp_path / 'reference.npz', Moments.of(draw(9, 6))
    images = np.zeros((2, 4, 4, 3), np.uint8)
    mu, sigma = np.float32([1, 2]), np.eye(2)
    np.savez(path, images, mu=mu, sigma=sigma, mu_s=spatial.mu, sigma_s=spatial.sigma)
    got = load_statistics(path)
    assert (got.mu.dtype, got.mu.tolist(), got.provenance) == (np.float64, [1, 2], {})
    assert fid(load_statistics(path, spatial=True), spatial) < 1e-12


def test_a_name_with_another_ending(tmp_path):
    with pytest.raises(UserError, match=r'a.npy: statistics are kept as .npz'):
        save_statistics(tmp_path / 'a.npy', Moments.of(draw(5, 2)))


def write_truncated(path):
    save_statistics(path, Moments.of(draw(50, 30)))
    path.write_bytes(path.read_bytes()[:3000])


def write_flipped(path):
    save_statistics(path, Moments.of(draw(50, 30)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def write_array(path):
    with path.open('wb') as file:
        np.save(file, np.eye(2))


BROKEN = {
    'missing': (lambda path: None, 'not found: expected an .npz file'),
    'text': (lambda path: path.write_text('mu sigma'), 'cannot be read as .npz'),
    'nothing': (lambda path: path.write_bytes(b''), 'cannot be read as .npz'),
    'truncated': (write_truncated, 'cannot be read as .npz'),
    'flipped': (write_flipped, 'cannot be read as .npz'),
    'pickle': (lambda path: path.write_bytes(pickle.dumps({'mu': 1})), 'cannot be read as .npz'),
    'objects': (
        lambda path: np.savez(path, mu=np.array([{}]), sigma=np.eye(2)),
        'cannot be read as .npz',
    ),
    'scalar': (
        lambda path: np.savez(path, mu=1.0, sigma=np.eye(2)),
        r'mu of shape \(\) and sigma of shape \(2, 2\), expected \[d\] and \[d, d\]',
    ),
    'sizes': (lambda path: np.savez(path, mu=np.ones(3), sigma=np.eye(2)), 'expected'),
    'empty': (lambda path: np.savez(path, mu=np.ones(0), sigma=np.ones((0, 0))), 'expected'),
    'complex mu': (lambda path: np.savez(path, mu=1j * ZERO, sigma=EYE), 'has mu of complex128'),
    'complex': (lambda path: np.savez(path, mu=ZERO, sigma=EYE + 0j), 'has sigma of complex128'),
    'strings': (lambda path: np.savez(path, mu=['a', 'b'], sigma=EYE), 'has mu of <U1'),
    **{
        f'story {story[:9]}': (
            lambda path, story=story: np.savez(path, mu=ZERO, sigma=EYE, provenance=story),
            'has a provenance that is no JSON object',
        )
        for story in ('[1, 2]', 'words', '3', 'null', '', '[' * 100_000)
    },
    'array': (write_array, 'holds one array, expected'),
    'images': (
        lambda path: np.savez(path, np.zeros((2, 4, 4, 3))),
        'holds arr_0, expected mu and sigma',
    ),
}


@pytest.mark.parametrize('case', BROKEN)
def test_files_that_are_no_statistics(case, tmp_path):
    write, message = BROKEN[case]
    path = tmp_path / 'a.npz'
    write(path)
    with pytest.raises(UserError, match=message) as error:
        load_statistics(path)
    assert '\n' not in str(error.value)
    assert str(path) in str(error.value)


def test_no_spatial_statistics(tmp_path):
    path = tmp_path / 'a.npz'
    save_statistics(path, Moments.of(draw(5, 2)))
    with pytest.raises(UserError, match='expected mu_s and sigma_s'):
        load_statistics(path, spatial=True)
    assert json.loads(str(np.load(path)['provenance'])) == {'n': 5}
