import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import samplers
from gen_jax.diffusion.ladder import ladder
from gen_jax.diffusion.losses import draw_times
from gen_jax.diffusion.processes import Path
from gen_jax.errors import UserError


def test_levels_are_the_times():
    process = ladder(10, 0.01, 1.0)  # NCSN's
    t = np.arange(10, dtype=np.float32)
    np.testing.assert_allclose(process.sigma(t), np.geomspace(0.01, 1.0, 10), rtol=1e-5)
    np.testing.assert_allclose(process.time(process.sigma(t)), t, atol=1e-5)
    np.testing.assert_array_equal(process.alpha(t), 1)
    assert (process.t_min, process.t_max, process.prior_std) == (0, 9, 1)


def test_all_levels_are_drawn_alike():
    t = draw_times('levels', ladder(10, 0.01, 1.0), jax.random.key(0), 20_000)
    assert t.dtype == jnp.float32
    level, count = np.unique(t, return_counts=True)
    np.testing.assert_array_equal(level, np.arange(10))
    np.testing.assert_allclose(count, 2000, atol=5 * np.sqrt(2000))


def test_a_sampler_visits_each_level_and_reaches_the_data():
    """By the exact denoiser of N(0, 0.5^2)."""
    process = ladder(60, 0.01, 5.0)
    path = Path(process, jnp.full(256, 60), 'linear')
    told = [float(path.at(jnp.int32(i)).t[0]) for i in (0, 1, 59)]
    np.testing.assert_allclose(told, [0, 1, 59], atol=1e-4)

    def denoise(x_t, t):
        return 0.25 / (0.25 + process.sigma(t)[:, None, None, None] ** 2) * x_t

    keys = jax.random.split(jax.random.key(0), 256)
    args = denoise, path, keys, (4, 4, 1), 'fixed_small'
    x = jax.jit(lambda: samplers.ancestral(*args))()
    # 4,096 draws, whose standard error is 0.006, and steps of a tenth of log(sigma).
    assert abs(float(x.mean())) < 0.03
    np.testing.assert_allclose(x.std(), 0.5, atol=0.03)


@pytest.mark.parametrize('wrong', [(1, 0.01, 1.0), (10, 0.0, 1.0), (10, 1.0, 0.1)])
def test_mistakes_are_named(wrong):
    with pytest.raises(UserError, match='at least 2 levels and 0 < sigma_min < sigma_max'):
        ladder(*wrong)
