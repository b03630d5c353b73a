"""The probability flow's likelihood against densities that are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp

from gen_jax.config import default
from gen_jax.diffusion import continuous, likelihood, ode, processes
from gen_jax.diffusion.likelihood import bits_per_dim, latent, log_likelihood
from gen_jax.errors import UserError

PROCESSES = {
    'vp_linear': processes.vp_linear(),
    'vp_cosine': processes.vp_cosine(),
    'sub_vp': processes.sub_vp(),
    've': processes.ve(),
    'edm': processes.edm(),
    'flow': processes.flow(),
}
SHAPE = (1, 2, 3)
D = 6
# The data: a Gaussian with correlated pixels.
MU = np.linspace(-0.3, 0.4, D)
Q = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))[0]
VARIANCES = np.linspace(0.15, 0.6, D) ** 2


def keys(n):
    return jax.random.split(jax.random.key(0), n)


def first(keys):
    """Of each key, what the noise within the cells is drawn from."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)


def images(b):
    z = np.random.default_rng(1).standard_normal((b, D))
    return np.float32(MU + (z * np.sqrt(VARIANCES)) @ Q.T).reshape(b, *SHAPE)


def levels(process, t):
    return process.alpha(t)[:, None], process.sigma(t)[:, None]


def gaussian(process, variances=VARIANCES):
    """The exact denoiser of that Gaussian."""

    def denoise(x_t, t):
        alpha, sigma = levels(process, t)
        z = (x_t.reshape(-1, D) - alpha * MU) @ Q
        z = alpha * variances / (alpha**2 * variances + sigma**2) * z
        return jnp.float32(MU + z @ Q.T).reshape(x_t.shape)

    return denoise


def to_bits(log_p, dims=D):
    """With 128 cells in each unit of [-1, 1]."""
    return -log_p / (dims * np.log(2)) + 7


def analytic(process, image, variances=VARIANCES):
    """(bits per dimension, x_T): for a Gaussian the ODE is linear, and its end is known."""
    t = jnp.float32((process.t_min, process.t_max))
    (alpha, alpha_T), (sigma, sigma_T) = (
        np.asarray(f(t), np.float64) for f in (process.alpha, process.sigma)
    )
    stretch = np.sqrt((alpha_T**2 * variances + sigma_T**2) / (alpha**2 * variances + sigma**2))
    z = (np.float64(image).reshape(-1, D) - alpha * MU) @ Q
    x_T = alpha_T * MU + (stretch * z) @ Q.T
    log_p = stats.norm.logpdf(x_T, scale=process.prior_std).sum(1) + np.log(stretch).sum()
    return to_bits(log_p), x_T.reshape(image.shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ('sub_vp', 've', 'vp_cosine')))
        for name in PROCESSES
    ],
)
def test_gaussian(name):
    process, image = PROCESSES[name], images(5)
    args = gaussian(process), process, keys(5), image, 'none', 'exact'
    found = jax.jit(lambda: bits_per_dim(*args))()['bits_per_dim']
    want, _ = analytic(process, image)
    # The data's own density differs by the noise at t_min and by what signal is left at t_max.
    data = to_bits(stats.multivariate_normal(MU, Q * VARIANCES @ Q.T).logpdf(image.reshape(-1, D)))
    print('from the ODE', np.abs(found - want).max(), 'from the data', np.abs(found - data).max())
    np.testing.assert_allclose(found, want, atol=2e-4)
    np.testing.assert_allclose(found, data, atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize('probe', ['rademacher', 'gaussian'])
def test_probes_have_no_bias_and_more_of_them_less_spread(probe):
    process, n = PROCESSES['flow'], 400
    image = np.repeat(images(1), n, 0)
    want, _ = analytic(process, image[:1])
    args = gaussian(process), process, keys(n), image, 'none', probe
    one, nine = (jax.jit(lambda k=k: bits_per_dim(*args, k))()['bits_per_dim'] for k in (1, 9))
    for bits in (one, nine):
        assert abs(bits.mean() - want[0]) < 4 * bits.std() / n**0.5
    assert one.std() > 0.05
    assert 2.5 < one.std() / nine.std() < 3.5


@pytest.mark.slow
def test_rademacher_is_exact_where_pixels_are_independent():
    process, image, variances = PROCESSES['vp_cosine'], images(3), np.full(D, 0.1)
    args = gaussian(process, variances), process, keys(3), image, 'none'
    found = jax.jit(lambda: bits_per_dim(*args))()['bits_per_dim']
    np.testing.assert_allclose(found, analytic(process, image, variances)[0], atol=2e-4)


def test_directions_have_no_preference():
    for name in likelihood.DIVERGENCES:
        v = np.asarray(likelihood.directions(keys(1000), (2, 1, 2), name, 3))
        moment = np.einsum('bki,bkj->ij', *2 * [v.reshape(*v.shape[:2], 4)]) / v[..., 0, 0, 0].size
        np.testing.assert_allclose(moment, np.eye(4), atol=0.1 if name != 'exact' else 1e-6)
        if name != 'exact':
            assert v.shape == (1000, 3, 2, 1, 2)
            alone = likelihood.directions(keys(1000)[7:8], (2, 1, 2), name, 3)
            np.testing.assert_array_equal(alone[0], v[7])
        if name == 'rademacher':
            assert set(np.unique(v)) == {-1, 1}
        if name == 'gaussian':
            assert stats.kstest(v.ravel(), 'norm').pvalue > 0.01


@pytest.mark.slow
def test_mixture():
    process, std = PROCESSES['flow'], 0.2
    means = np.float32([[-0.5, 0.3], [0.6, 0.1]])
    points = np.float32([[-0.5, 0.3], [0.05, 0.2], [0.9, 0.1], [-0.2, -0.4]])

    def denoise(x_t, t):
        alpha, sigma = levels(process, t)
        x, variance = x_t.reshape(-1, 1, 2), (alpha**2 * std**2 + sigma**2)[:, None]
        centres = alpha[..., None] * means  # [n, 2, 2]
        share = jax.nn.softmax(-((x - centres) ** 2).sum(2, keepdims=True) / (2 * variance), 1)
        each = means + alpha[..., None] * std**2 / variance * (x - centres)
        return (share * each).sum(1).reshape(x_t.shape)

    v = likelihood.directions(keys(4), (1, 1, 2), 'exact', 1)
    args = denoise, process, points.reshape(4, 1, 1, 2), v
    found, _, _ = jax.jit(lambda: log_likelihood(*args))()
    alpha, sigma = (float(f(jnp.float32(process.t_min))) for f in (process.alpha, process.sigma))
    parts = [stats.norm.pdf(points, alpha * m, np.hypot(alpha * std, sigma)).prod(1) for m in means]
    want = np.log(np.mean(parts, 0))
    print('nats', np.abs(found - want).max())
    np.testing.assert_allclose(found, want, atol=5e-4)


@pytest.mark.slow
def test_network_as_scipy_in_float64():
    """A network of two layers that says eps, whose Jacobian is written down."""
    process, rng = PROCESSES['vp_linear'], np.random.default_rng(2)
    inner, outer, time = rng.standard_normal((D, 8)), rng.standard_normal((8, D)) / 3, np.ones(8)
    image = images(2)

    def denoise(x_t, t):
        alpha, sigma = levels(process, t)
        x = x_t.reshape(-1, D)
        eps = jnp.tanh(x @ inner + t[:, None] * time) @ outer
        return jnp.float32((x - sigma * eps) / alpha).reshape(x_t.shape)

    def slope(t, state):
        beta = 0.1 + 19.9 * t
        sigma = np.sqrt(-np.expm1(-0.5 * 19.9 * t**2 - 0.1 * t))
        h = np.tanh(state[:D] @ inner + t * time)
        score = -h @ outer / sigma
        trace = -((1 - h**2) * (outer @ inner).diagonal()).sum() / sigma
        return np.append(-beta / 2 * (state[:D] + score), -beta / 2 * (D + trace))

    v = likelihood.directions(keys(2), SHAPE, 'exact', 1)
    log_p, x_T, _ = jax.jit(lambda: log_likelihood(denoise, process, image, v))()
    for i in range(2):
        start = np.append(np.float64(image[i]).ravel(), 0.0)
        end = solve_ivp(slope, (1e-3, 1.0), start, rtol=1e-10, atol=1e-10).y[:, -1]
        want = stats.norm.logpdf(end[:D]).sum() + end[D]
        print('nats', log_p[i] - want, 'x_T', np.abs(x_T[i].ravel() - end[:D]).max())
        np.testing.assert_allclose(log_p[i], want, atol=2e-3)
        np.testing.assert_allclose(x_T[i].ravel(), end[:D], atol=2e-3)


def test_dequantised_levels_stay_in_their_cells():
    level = np.arange(256).reshape(2, 8, 16, 1)
    image = np.float32(level / 127.5 - 1)
    x = np.asarray(likelihood.dequantised(keys(2), image))
    u = (x + 1) * 128 - level
    assert u.min() > -1e-4
    assert u.max() < 1 + 1e-4
    assert stats.kstest(u.ravel(), 'uniform').pvalue > 0.01
    alone = likelihood.dequantised(keys(2)[1:], image[1:])
    np.testing.assert_array_equal(alone[0], x[1])


@pytest.mark.slow
def test_uniform_dequantisation_bounds_the_levels_bits():
    """Independent pixels from a Gaussian of 0.8 cells, so that the gap is there to be seen."""
    process, n, std = processes.edm(1e-4, 80.0), 300, 0.8 / 128
    rng = np.random.default_rng(3)
    level = np.floor((std * rng.standard_normal((n, D)) + 1) * 128)
    image = np.float32(level / 127.5 - 1).reshape(n, *SHAPE)

    def denoise(x_t, t):
        t = t[:, None, None, None]
        return std**2 / (std**2 + t**2) * x_t

    found = jax.jit(lambda: bits_per_dim(denoise, process, keys(n), image))()['bits_per_dim']
    low, high = level / 128 - 1, (level + 1) / 128 - 1
    discrete = -np.log2(np.diff(stats.norm.cdf(np.stack([low, high]), scale=std), axis=0)[0])
    square = (high**3 - low**3) / 3 / (high - low)  # of x, over the cell
    dequantised = (square / (2 * std**2) + np.log(std * np.sqrt(2 * np.pi))) / np.log(2) + 7
    gap = dequantised.mean() - discrete.mean()
    assert gap > 0.05
    error = (found - dequantised.mean(1)).std() / n**0.5
    assert error < gap / 4
    assert abs(found.mean() - dequantised.mean()) < 4 * error


@pytest.mark.slow
def test_dequantisation_and_probes_are_drawn_from_the_examples_key():
    process, image, key = PROCESSES['flow'], np.float32(np.round(images(2) * 50) / 127.5), keys(2)
    run = jax.jit(partial(bits_per_dim, gaussian(process), process), static_argnums=2)
    whole = run(key, image, 'uniform')['bits_per_dim']
    noised = likelihood.dequantised(first(key), image)
    again = run(key, noised, 'none')['bits_per_dim']
    np.testing.assert_allclose(whole, again, atol=1e-5)
    other = run(key[::-1], image, 'uniform')['bits_per_dim']
    assert np.abs(whole - other).min() > 1e-3


@pytest.mark.slow
def test_examples_do_not_see_each_other():
    """Neither in their steps nor in what `denoise` knows of them, by which one is far stiffer."""
    process, image, std = PROCESSES['edm'], images(3), jnp.float32((0.5, 0.01, 0.2))

    @jax.jit
    def run(keys, image, std):
        def denoise(x_t, t):
            variance = std[:, None, None, None] ** 2
            return variance / (variance + t[:, None, None, None] ** 2) * x_t

        return bits_per_dim(denoise, process, keys, image)

    together = run(keys(3), image, std)
    assert len(set(together['nfe'].tolist())) > 1
    for i in range(3):
        part = slice(i, i + 1)
        alone = run(keys(3)[part], image[part], std[part])
        assert alone['nfe'] == together['nfe'][i]
        np.testing.assert_allclose(alone['bits_per_dim'][0], together['bits_per_dim'][i], rtol=1e-5)


@pytest.mark.slow
def test_nfe_counts_calls_each_of_all_examples():
    process, shapes = PROCESSES['flow'], []
    v = likelihood.directions(keys(3), SHAPE, 'rademacher', 2)

    def seen(x_t):
        shapes.append(x_t.shape)
        return np.float32(0)

    def denoise(x_t, t):
        none = jax.ShapeDtypeStruct((), jnp.float32)
        called = jax.pure_callback(seen, none, jax.lax.stop_gradient(x_t))
        return gaussian(process)(x_t, t) + called

    _, _, nfe = jax.jit(lambda: log_likelihood(denoise, process, images(3), v))()
    most = int(max(nfe))
    assert {*shapes} == {(3, *SHAPE)}
    assert len(shapes) == most


def test_latent_is_where_the_flow_ends():
    process, image = PROCESSES['vp_linear'], images(3)
    x_T = jax.jit(lambda: latent(gaussian(process), process, image))()
    np.testing.assert_allclose(x_T, analytic(process, image)[1], atol=1e-3)


@pytest.mark.slow
def test_both_tolerances_bound_the_error():
    process, image = PROCESSES['edm'], images(2)
    v = likelihood.directions(keys(2), SHAPE, 'exact', 1)
    want, _ = analytic(process, image)
    args = gaussian(process), process, image, v
    run = jax.jit(lambda rtol, atol: log_likelihood(*args, rtol, atol))
    (loose, _, few), (tight, _, many) = run(1e-2, 1e-2), run(1e-5, 1e-5)
    assert np.abs(to_bits(tight) - want).max() < np.abs(to_bits(loose) - want).max() / 10
    for one_loose in ((1e-2, 1e-5), (1e-5, 1e-2)):
        _, _, nfe = run(*one_loose)
        assert (few <= nfe).all()
        assert few.sum() < nfe.sum()
        assert (nfe < many).all()


@pytest.mark.slow
def test_no_number_where_the_solver_gave_up(monkeypatch):
    monkeypatch.setattr(ode, 'MOST_STEPS', 5)
    process = PROCESSES['flow']
    args = gaussian(process), process, keys(1), images(1)
    found = jax.jit(lambda: bits_per_dim(*args))()
    assert np.isnan(found['bits_per_dim'])


@pytest.mark.slow
def test_untrained_network_is_a_gaussian():
    """With EDM's preconditioning a network that says 0 is the exact denoiser of N(0, 0.5^2)."""
    config = default('diffusion.continuous', network='dit')
    small = {'data.image_size': 4, 'data.num_classes': 3}
    small |= {'model.width': 8, 'model.depth': 1, 'model.heads': 1}
    config.update_from_flattened_dict(small)
    method = continuous.create(config)
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1)) / np.float32(127.5) - 1
    state = jax.jit(method.init)(jax.random.key(0), {'image': image})

    @jax.jit
    def run(state, condition):
        denoise = partial(method.denoise, state, condition=condition)
        return bits_per_dim(denoise, processes.edm(), keys(2), image)['bits_per_dim']

    x = likelihood.dequantised(first(keys(2)), image)
    want = to_bits(stats.norm.logpdf(x, scale=0.5).sum((1, 2, 3)), 16)
    np.testing.assert_allclose(run(state, {'label': jnp.arange(2)}), want, atol=1e-3)


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        ({'dequantisation': 'unifrom'}, "dequantisation='unifrom': .* did you mean 'uniform'?"),
        ({'divergence': 'normal'}, "divergence='normal': expected a known name; known are"),
        ({'probes': 0}, 'probes=0: expected a whole number of at least 1'),
        ({'divergence': 'exact', 'probes': 2}, "probes=2: expected 1, as divergence='exact' draws"),
        ({'rtol': 0.0}, 'rtol=0.0: expected a tolerance below 1, of 1e-07'),
        ({'atol': 1.0}, 'atol=1.0: expected a tolerance below 1, of 1e-07'),
    ],
)
def test_refused(options, told):
    process = PROCESSES['flow']
    with pytest.raises(UserError, match=told.replace('?', r'\?')) as caught:
        bits_per_dim(gaussian(process), process, keys(1), images(1), **options)
    assert '\n' not in str(caught.value)


def test_exact_is_for_small_images():
    asked = {'dequantisation': 'none', 'divergence': 'exact', 'probes': 1, 'rtol': 1e-5}
    likelihood.check((32, 32, 1), asked)
    with pytest.raises(UserError, match=r"'rademacher' or .* at most 1024 .* these have 3072"):
        likelihood.check((32, 32, 3), asked)
