"""Uses of a trained model, on a Gaussian whose pixels are correlated: its denoiser is exact.

What is unknown of it, given what is known, is Gaussian too, with moments in closed form.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import samplers, uses
from gen_jax.diffusion.processes import Path, edm, flow, vp_linear
from gen_jax.diffusion.schedules import DiscreteProcess, Trajectory, linear_betas
from gen_jax.errors import UserError

T = 200
DISCRETE = DiscreteProcess.from_betas(linear_betas(T, 5e-4, 0.1))
SHAPE = (2, 2, 1)
MEAN = np.array([0.2, -0.1, 0.3, 0.0])
FACTOR = np.array([[0.5, 0, 0, 0], [0.4, 0.25, 0, 0], [0.3, -0.2, 0.2, 0], [0.35, 0.1, 0.1, 0.2]])
COV = FACTOR @ FACTOR.T
DATA = tuple(MEAN), tuple(COV.ravel())  # as a cache can keep them
KNOWN = np.array([True, True, False, False])


def keys(n, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(n))


def levels(process):
    """t [n] -> (alpha, sigma), each [n, 1]."""
    if isinstance(process, DiscreteProcess):
        a = jnp.asarray(process.alpha_bar)
        return lambda t: (jnp.sqrt(a[t])[:, None], jnp.sqrt(1 - a[t])[:, None])
    return lambda t: (process.alpha(t)[:, None], process.sigma(t)[:, None])


def denoiser(process, mean=MEAN, cov=COV):
    """E[x_0 | x_t] for x_0 ~ N(mean, cov), its d pixels in any shape."""
    values, vectors = np.linalg.eigh(cov)
    level = levels(process)

    def denoise(x_t, t):
        alpha, sigma = level(t)
        y = (x_t.reshape(len(x_t), -1) - alpha * mean) @ vectors
        y = y * alpha * values / (alpha**2 * values + sigma**2)
        return (mean + y @ vectors.T).reshape(x_t.shape)

    return denoise


def times(process, steps):
    """Of n samples, which go through that many steps, [n]."""
    if isinstance(process, DiscreteProcess):
        return Trajectory.create(process, steps, 'linear')
    return Path(process, steps, 'karras' if process.prior_std > 1 else 'trailing')


def images(n, seed=1, mean=MEAN, factor=FACTOR):
    z = np.random.default_rng(seed).standard_normal((n, len(mean)))
    return jnp.float32((mean + z @ factor.T).reshape(n, *SHAPE))


def number(n, value):
    return jnp.full(n, value, jnp.int32 if isinstance(value, int) else jnp.float32)


# Inversion.

PROCESSES = {
    'discrete': DISCRETE,
    'fine': DiscreteProcess.from_betas(linear_betas(1024, 0.1 / 1024, 20 / 1024)),
    'coarse': DiscreteProcess.from_betas(linear_betas(4, 0.3, 0.6)),
    'edm': edm(1e-3, 20.0),
    'flow': flow(),
    'vp': vp_linear(),
}


@functools.cache
def there_and_back(process_name):
    """(image, steps) -> x_T and the image again, in one program."""

    @jax.jit
    def run(image, steps):
        process, n = PROCESSES[process_name], len(image)
        denoise, path = denoiser(process), times(process, steps)
        x_T = uses.invert(denoise, path, image)
        return x_T, uses.generate(denoise, path, keys(n), x_T, path.count, number(n, 0.0))

    return run


@pytest.mark.parametrize('name', ['fine', 'edm', 'flow', 'vp'])
def test_an_image_comes_back_with_an_error_of_first_order(name):
    image, errors = images(8), []
    for steps in (64, 128, 256):
        _, back = there_and_back(name)(image, number(8, steps))
        errors.append(float(jnp.abs(back - image).max()))
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 1.0, atol=0.2)
    assert errors[-1] < 0.04


@pytest.mark.parametrize('name', ['edm', 'vp'])
def test_inversion_leads_to_where_the_probability_flow_does(name):
    """The flow of a Gaussian maps quantiles onto quantiles, along each of its axes."""
    process, image = PROCESSES[name], images(8)
    values, vectors = np.linalg.eigh(COV)
    alpha, sigma = (float(f(process.t_max)) for f in (process.alpha, process.sigma))
    y = (np.asarray(image).reshape(8, -1) - MEAN) @ vectors
    y = y * np.sqrt((alpha**2 * values + sigma**2) / values)
    want = (alpha * MEAN + y @ vectors.T) / sigma
    found = np.asarray(there_and_back(name)(image, number(8, 1600))[0]).reshape(8, -1) / sigma
    np.testing.assert_allclose(found, want, atol=0.02)


def test_inversion_of_other_steps_goes_together():
    image, steps = images(3), (7, 3, 20)
    together = there_and_back('discrete')(image, jnp.int32(steps))
    for j in range(3):
        alone = there_and_back('discrete')(image, number(3, steps[j]))
        for x, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(x[j], one[j], atol=1e-5)


def test_inversion_begins_with_the_image_scaled():
    image, denoise = images(2), denoiser(PROCESSES['coarse'])
    alpha = np.sqrt(0.7 * 0.6 * 0.5 * 0.4)
    path = times(PROCESSES['coarse'], number(2, 1))
    np.testing.assert_allclose(uses.invert(denoise, path, image), alpha * image, rtol=1e-5)


# Generating.


@pytest.mark.slow
def test_generating_from_x_T_is_ddim():
    path, eta = times(DISCRETE, jnp.int32([5, 9, 20])), jnp.float32([0.0, 0.4, 1.0])
    x_T = samplers.normal(keys(3), 0, SHAPE)
    found = uses.generate(denoiser(DISCRETE), path, keys(3), x_T, path.count, eta)
    want = samplers.ddim(denoiser(DISCRETE), path, keys(3), SHAPE, eta)
    np.testing.assert_allclose(found, want, atol=1e-6)


# Interpolation.


def test_slerp_keeps_the_length_and_divides_the_angle():
    a, b = (samplers.normal(keys(5, seed), 0, (3, 4, 2)) for seed in (0, 1))
    b *= (
        jnp.linalg.norm(a.reshape(5, -1), axis=1)[:, None, None, None]
        / (jnp.linalg.norm(b.reshape(5, -1), axis=1)[:, None, None, None])
    )
    u = jnp.float32([0.0, 0.25, 0.5, 0.9, 1.0])
    flat = [np.asarray(x, np.float64).reshape(5, -1) for x in (a, b, uses.slerp(a, b, u))]
    lengths = [np.linalg.norm(x, axis=1) for x in flat]
    np.testing.assert_allclose(lengths[2], lengths[0], rtol=1e-6)
    a, b, x = (row / length[:, None] for row, length in zip(flat, lengths, strict=True))
    whole, part = (np.arccos((a * other).sum(1).clip(-1, 1)) for other in (b, x))
    np.testing.assert_allclose(part, whole * np.asarray(u), atol=1e-3)
    np.testing.assert_allclose((x[0], x[4]), (a[0], b[4]), atol=1e-6)


def test_slerp_of_one_and_the_same_is_that():
    a = samplers.normal(keys(3), 0, SHAPE)
    np.testing.assert_allclose(uses.slerp(a, a, jnp.float32([0, 0.3, 1])), a, rtol=1e-6)
    near = a * (1 + 1e-4)
    np.testing.assert_allclose(uses.slerp(a, near, number(3, 0.5)), a * (1 + 5e-5), rtol=1e-6)


def test_slerp_from_or_to_nothing_is_straight():
    a, u = samplers.normal(keys(3), 0, SHAPE), jnp.float32([0, 0.3, 1])
    ways = u[:, None, None, None]
    np.testing.assert_allclose(uses.slerp(a, 0 * a, u), (1 - ways) * a, rtol=1e-6)
    np.testing.assert_allclose(uses.slerp(0 * a, a, u), ways * a, rtol=1e-6)
    np.testing.assert_array_equal(uses.slerp(0 * a, 0 * a, u), 0 * a)


# SDEdit.


@functools.partial(jax.jit, static_argnames='process_name')
def varied(strength, eta, image, process_name='discrete', steps=T):
    process, n = PROCESSES[process_name], len(image)
    path = times(process, number(n, steps))
    x_t, start = uses.noised(path, keys(n), image, strength)
    return uses.generate(denoiser(process), path, keys(n), x_t, start, eta)


@pytest.mark.slow
@pytest.mark.parametrize('eta', [0.0, 1.0])
@pytest.mark.parametrize('name', ['discrete', 'edm'])
def test_strength_1_forgets_the_image(name, eta):
    n = 4096
    image = jnp.full((n, *SHAPE), 0.9)
    x = np.asarray(varied(number(n, 1.0), number(n, eta), image, name)).reshape(n, -1)
    # Standard errors: 0.009 of the means, 0.008 of the covariances. DDIM itself errs by O(1/T).
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.04)
    np.testing.assert_allclose(np.cov(x.T), COV, atol=0.03)


@pytest.mark.slow
def test_strength_near_0_returns_the_image():
    image = images(16)
    for name, least_noise in (('discrete', 0.0224), ('edm', 0.001)):
        x = varied(number(16, 1e-6), number(16, 1.0), image, name)
        np.testing.assert_allclose(x, image, atol=4 * least_noise)


@pytest.mark.slow
def test_more_strength_leaves_less_of_the_image_in_one_program():
    n = 512
    image = jnp.tile(images(1), (n, 1, 1, 1)) + jnp.float32(0.5)
    strength = jnp.repeat(jnp.float32([0.02, 0.2, 0.5, 1.0]), n // 4)
    x = varied(strength, number(n, 0.0), image)
    away = np.abs(np.asarray(x - image)).mean((1, 2, 3)).reshape(4, -1).mean(1)
    assert (np.diff(away) > 0.02).all()


def test_strength_counts_the_steps_that_are_taken():
    path = times(DISCRETE, jnp.int32([10, 10, 10, 1, 40]))
    strength = jnp.float32([0.01, 0.55, 1.0, 0.3, 0.25])
    x_t, start = jax.jit(uses.noised)(path, keys(5), jnp.zeros((5, *SHAPE)), strength)
    np.testing.assert_array_equal(start, [1, 6, 10, 1, 10])  # 5.5 rounds to the even 6
    z = samplers.normal(keys(5), 0, SHAPE)
    # Times are spaced by T / 10; the last of 10 is 0.9 T, and the only one of 1 is T - 1.
    std = np.sqrt(1 - DISCRETE.alpha_bar[[0, 100, 180, 199, 45]])
    np.testing.assert_allclose(x_t, std[:, None, None, None] * z, rtol=1e-5)


# RePaint and imputation.


def visited(count, jump, repeats):
    """The times that a walk visits, counted from 0, and -1 for the image."""
    walk, order = uses.Walk(*(jnp.int32([x]) for x in (count, jump, repeats))), []
    total = int(walk.total[0])
    level, up = np.asarray(walk.level(jnp.arange(total))), walk.jumps(jnp.arange(total))
    for i in range(total)[::-1]:
        order.append(level[i] - 1)
        if up[i]:
            order += range(level[i] - 2, level[i - 1] - 1)
    return [int(t) for t in [*order, -1]]


# `get_schedule_jump(t_T, n_sample=1, jump_length, jump_n_sample)` of guided_diffusion/scheduler.py
# in github.com/andreas128/RePaint at 8e2a055.
WALKS = {
    (6, 2, 2): [5, 4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, -1],
    (7, 3, 3): [6, 5, 4, 3] + [4, 5, 6, 5, 4, 3] * 2 + [2, 1, 0] + [1, 2, 3, 2, 1, 0] * 2 + [-1],
    (5, 1, 2): [4, 3, 4, 3, 2, 3, 2, 1, 2, 1, 0, 1, 0, -1],
    (4, 4, 3): [3, 2, 1, 0, -1],
    (3, 5, 2): [2, 1, 0, -1],
    (5, 2, 1): [4, 3, 2, 1, 0, -1],
}


@pytest.mark.parametrize('settings', WALKS)
def test_times_are_visited_in_the_references_order(settings):
    assert visited(*settings) == WALKS[settings]


def test_the_papers_walk_has_the_references_length():
    order = visited(250, 10, 10)
    steps_down = sum(b < a for a, b in itertools.pairwise(order))
    assert (len(order), steps_down, sum(order)) == (4571, 2410, 549524)
    assert int(uses.Walk(*jnp.int32([250, 10, 10])).total) == 2410


@functools.cache
def completion(process_name, known, mean=DATA[0], cov=DATA[1]):
    """(keys, image, mask, steps, jump, repeats, eta) -> `complete`, the last four of any shape."""
    process, mean = PROCESSES[process_name], np.array(mean)
    denoise = denoiser(process, mean, np.array(cov).reshape(len(mean), -1))

    @jax.jit
    def run(keys, image, mask, steps, jump, repeats, eta):
        path = times(process, steps)
        return uses.complete(denoise, path, keys, image, known(mask), eta, jump, repeats)

    def each(keys, image, mask, *numbers):
        return run(
            keys, image, mask, *(jnp.broadcast_to(jnp.asarray(x), len(keys)) for x in numbers)
        )

    return each


MASK = jnp.float32(KNOWN.reshape(1, *SHAPE))
GIVEN = np.array([0.7, 0.1])


def inpainted(name, n, steps, jump, repeats):
    """[n, 4], with GIVEN known, and nonsense in the image where it is unknown."""
    image = jnp.float32(np.append(GIVEN, [9.0, -9.0]).reshape(1, *SHAPE))
    image = jnp.broadcast_to(image, (n, *SHAPE))
    run = completion(name, uses.masked)
    return np.asarray(run(keys(n), image, MASK, steps, jump, repeats, 1.0)).reshape(n, 4)


def algorithm_1(process, jump, repeats):
    """Mean and covariance of what RePaint draws, in numpy, one step of the paper at a time."""
    k, abar = np.diag(1.0 * KNOWN), np.append(1.0, process.alpha_bar)
    u, y = np.eye(4) - k, np.append(GIVEN, [0, 0])
    m, v = np.zeros(4), np.eye(4)
    for t, following in itertools.pairwise(visited(len(abar) - 1, jump, repeats)):
        if following > t:
            beta = 1 - abar[following + 1] / abar[following]
            m, v = np.sqrt(1 - beta) * m, (1 - beta) * v + beta * np.eye(4)
            continue
        a, a_prev = abar[t + 1], abar[t]
        beta = 1 - a / a_prev
        gain = np.sqrt(a) * COV @ np.linalg.inv(a * COV + (1 - a) * np.eye(4))
        c_0, c_t = np.sqrt(a_prev) * beta / (1 - a), np.sqrt(a / a_prev) * (1 - a_prev) / (1 - a)
        linear, constant = c_0 * gain + c_t * np.eye(4), c_0 * (MEAN - np.sqrt(a) * gain @ MEAN)
        m = linear @ m + constant
        v = linear @ v @ linear.T + beta * (1 - a_prev) / (1 - a) * np.eye(4)
        m, v = u @ m + np.sqrt(a_prev) * k @ y, u @ v @ u + (1 - a_prev) * k
    return m, v


@pytest.mark.slow
@pytest.mark.parametrize(('jump', 'repeats'), [(1, 1), (2, 2), (1, 4)])
def test_what_is_drawn_has_the_moments_of_algorithm_1(jump, repeats):
    x = inpainted('coarse', 40000, 4, jump, repeats)
    mean, cov = algorithm_1(PROCESSES['coarse'], jump, repeats)
    # Standard errors: 0.0011 of the means, 0.0003 of the covariances, at most.
    np.testing.assert_allclose(x.mean(0), mean, atol=0.005)
    np.testing.assert_allclose(np.cov(x.T), cov, atol=0.0015)


def conditional():
    """Mean and covariance of the unknown pixels, given GIVEN."""
    gain = COV[np.ix_(~KNOWN, KNOWN)] @ np.linalg.inv(COV[np.ix_(KNOWN, KNOWN)])
    mean = MEAN[~KNOWN] + gain @ (GIVEN - MEAN[KNOWN])
    return mean, COV[np.ix_(~KNOWN, ~KNOWN)] - gain @ COV[np.ix_(KNOWN, ~KNOWN)]


def off(name, repeats, n=1024):
    """By how much the moments of the unknown pixels are wrong: of the means, of the covariances."""
    x = inpainted(name, n, 40, 4, repeats)
    np.testing.assert_array_equal(x[:, KNOWN], np.broadcast_to(np.float32(GIVEN), (n, 2)))
    mean, cov = conditional()
    return np.abs(x[:, ~KNOWN].mean(0) - mean).max(), np.abs(np.cov(x[:, ~KNOWN].T) - cov).max()


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'share'), [('discrete', 0.75), ('edm', 0.5)])
def test_masking_is_biased_and_repaint_less(name, share):
    """The unknown pixels given the known ones have means 0.76, 0.27 and variances 0.04, 0.05."""
    (mean_1, cov_1), (mean_10, cov_10) = off(name, 1), off(name, 10)
    assert 0.2 < mean_1 < 0.3
    assert 0.02 < cov_1 < 0.04
    assert mean_10 < share * mean_1
    assert cov_10 < share * cov_1


@pytest.mark.slow
@pytest.mark.parametrize('name', ['discrete', 'edm'])
def test_completions_of_other_numbers_go_together_and_depend_on_their_own_key(name):
    run, images_4 = completion(name, uses.masked), images(4)
    steps, jump, repeats, eta = [5, 9, 3, 1], [2, 3, 7, 1], [3, 1, 2, 2], [1.0, 0.0, 0.5, 1.0]
    together = run(keys(4), images_4, MASK, steps, jump, repeats, eta)
    assert np.isfinite(together).all()
    for j in range(4):
        numbers = (x[j] for x in (steps, jump, repeats, eta))
        order = np.roll(np.arange(4), j)  # in another place, with other neighbours
        alone = run(keys(4)[order], images_4[order], MASK, *numbers)
        np.testing.assert_allclose(together[j], alone[list(order).index(j)], atol=1e-5)


@pytest.mark.slow
def test_nothing_known_is_ancestral_sampling_and_all_known_the_image():
    image, run = images(3), completion('discrete', uses.masked)
    nothing = run(keys(3), image, jnp.zeros_like(MASK), 20, 4, 1, 1.0)
    args = denoiser(DISCRETE), times(DISCRETE, number(3, 20)), keys(3), SHAPE
    np.testing.assert_allclose(nothing, samplers.ancestral(*args, 'fixed_small'), atol=1e-5)
    everything = run(keys(3), image, jnp.ones_like(MASK), 20, 4, 1, 1.0)
    np.testing.assert_array_equal(everything, image)


def test_draws_of_one_step_differ():
    """What is added in a step, to the known part and on the way up, is told apart by its keys."""
    drawn = [keys(2), uses._apart(keys(2), 0), uses._apart(keys(2), 1)]
    x = np.stack([samplers.normal(k, i, SHAPE) for k in drawn for i in range(3)])
    assert len(np.unique(x)) == x.size


# Colorization.


@pytest.mark.slow
def test_colours_are_drawn_given_gray_which_is_kept():
    n, pixel = 4096, np.array([0.5, -0.1, 0.35])
    mean, g = np.array([0.1, -0.2, 0.3]), np.full(3, 1 / np.sqrt(3))
    factor = np.array([[0.4, 0, 0], [0.3, 0.3, 0], [-0.1, 0, 0.2]])
    cov = factor @ factor.T
    gain = cov @ g / (g @ cov @ g)
    want = mean + gain * (g @ (pixel - mean)), cov - np.outer(gain, g @ cov)
    image = jnp.broadcast_to(jnp.float32(pixel), (n, 1, 1, 3))
    run, off = completion('edm', lambda _: uses.gray, tuple(mean), tuple(cov.ravel())), {}
    for repeats in (1, 8):
        x = np.asarray(run(keys(n), image, MASK, 40, 4, repeats, 1.0)).reshape(n, 3)
        np.testing.assert_allclose(x.mean(-1), 0.25, atol=2e-6)
        off[repeats] = np.abs(x.mean(0) - want[0]).max(), np.abs(np.cov(x.T) - want[1]).max()
    # Masking's bias, and what RePaint leaves of it; the variances are about 0.05.
    assert 0.07 < off[1][0] < 0.11
    assert off[8][0] < 0.04
    assert max(off[1][1], off[8][1]) < 0.015


def test_gray_is_the_projection_on_the_first_vector_of_an_orthonormal_basis():
    x = samplers.normal(keys(2), 0, (3, 3, 3))
    basis = np.linalg.qr(np.array([[1.0, 1, 0], [1, 0, 1], [1, 0, 0]]))[0]  # the first: (1, 1, 1)
    rotated = np.asarray(x) @ basis
    rotated[..., 1:] = 0
    np.testing.assert_allclose(uses.gray(x), rotated @ basis.T, atol=1e-6)


def test_gray_images_are_not_coloured():
    with pytest.raises(UserError, match='expected 3'):
        uses.gray(jnp.zeros((1, 4, 4, 1)))


# The method's part.


@pytest.mark.slow
def test_edits_tell_each_task_what_it_needs():
    def denoise(state, x_t, t, condition):
        return denoiser(DISCRETE)(x_t, t) + state + condition['shift'][:, None, None, None]

    made = uses.edits(denoise, lambda condition, n: times(DISCRETE, condition['steps']))
    image, n = images(3).clip(-1, 1), 3
    condition = {
        'image': image,
        'other': images(3, 2).clip(-1, 1),
        'fraction': jnp.float32([0, 0.5, 1]),
        'mask': jnp.broadcast_to(MASK, (n, 2, 2, 1)),
        'strength': number(n, 0.3),
        'eta': number(n, 1.0),
        'jump': number(n, 2),
        'repeats': number(n, 3),
        'steps': number(n, 40),
        'shift': number(n, 0.0),
    }
    done = {}
    for task in ('reconstruct', 'interpolate', 'inpaint', 'repaint', 'vary'):
        given, done[task] = jax.jit(made[task])(keys(n), 0.0, condition)
        for x in (given, done[task]):
            assert x.shape == image.shape
            assert np.abs(x).max() <= 1
        if task in ('inpaint', 'repaint'):
            np.testing.assert_array_equal(given, MASK * image)
            np.testing.assert_array_equal(done[task] * MASK, given)
    np.testing.assert_allclose(done['reconstruct'], image, atol=0.15)
    np.testing.assert_allclose(done['interpolate'][0], done['reconstruct'][0], atol=1e-5)
    np.testing.assert_allclose(done['interpolate'][2], condition['other'][2], atol=0.15)
    assert np.abs(done['inpaint'] - done['repaint']).max() > 0.01
    again = jax.jit(made['vary'])(keys(n), 0.0, condition | {'shift': number(n, 0.2)})[1]
    assert np.abs(again - done['vary']).max() > 0.01  # the condition is the denoiser's too
    assert sorted(made) == sorted([*done, 'colorize'])
