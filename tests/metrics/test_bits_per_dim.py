"""Bits per dimension, against entropies known in closed form."""

import math

import numpy as np
import pytest
import scipy.stats

from gen_jax.data import pipeline
from gen_jax.errors import UserError
from gen_jax.metrics import bits_per_dim as bpd


def test_equal_probabilities_of_256_levels_are_8_bits():
    assert bpd.from_nats(12 * math.log(256), dims=12) == pytest.approx(8, abs=1e-12)


@pytest.mark.parametrize(
    ('low', 'high', 'spacing', 'offset'),
    [
        (-1 - 1 / 255, 1 + 1 / 255, bpd.SPACING, 6.994353),  # levels of to_float, half a cell more
        (0, 1, 1 / 256, 8),
        (-0.5 / 255, 255.5 / 255, 1 / 255, 7.994353),
        (-0.5, 255.5, 1, 0),
    ],
)
def test_a_uniform_density_over_256_cells_is_8_bits_in_every_unit(low, high, spacing, offset):
    nats = 3072 * math.log(high - low)
    assert bpd.from_nats(nats, 3072, spacing) == pytest.approx(8, abs=1e-12)
    assert bpd.from_nats(0, 1, spacing) == pytest.approx(offset, abs=1e-6)


def test_the_spacing_is_that_of_the_pipelines_images():
    levels = pipeline.to_float(np.arange(256, dtype=np.uint8))
    np.testing.assert_allclose(np.diff(levels), bpd.SPACING, atol=1e-6)


def test_dequantising_a_gaussian_costs_what_jensens_inequality_says():
    """P(k) is exact from the CDF; E_u[-log p(k + u)] from the quadratic's moments, u ~ U(+-1/2).

    The gap's leading term is half the variance of log p over a cell: 1 / (24 std^2) nats.
    """
    k, mean = np.arange(-40, 41), 0.3
    gaps = {}
    for std in (0.5, 2.0, 5.0):
        mass = np.diff(scipy.stats.norm(mean, std).cdf(np.append(k, 41) - 0.5))
        discrete = bpd.from_nats(scipy.stats.entropy(mass), 1)
        nats = 0.5 * math.log(2 * math.pi * std**2) + ((k - mean) ** 2 + 1 / 12) / (2 * std**2)
        # The same density with levels 2 / 255 apart.
        scaled = nats + math.log(bpd.SPACING)
        gaps[std] = bpd.from_nats((mass * scaled).sum(), 1, bpd.SPACING) - discrete
    assert gaps[0.5] > 0.05
    for std in (2.0, 5.0):
        assert gaps[std] == pytest.approx(1 / (24 * std**2 * math.log(2)), rel=0.02)


def test_to_nats_undoes_from_nats_on_arrays():
    nats = np.linspace(-50, 900, 7).reshape(7, 1)
    bits = bpd.from_nats(nats, 64, bpd.SPACING)
    assert bits.shape == (7, 1)
    np.testing.assert_allclose(bpd.to_nats(bits, 64, bpd.SPACING), nats, atol=1e-10)
    assert bpd.to_nats(8.0, 2) == pytest.approx(2 * math.log(256))


def test_the_record_has_the_mean_its_error_and_what_it_is():
    bits = np.array([1.0, 2.0, 6.0])
    row = bpd.bits_per_dim(bits * 10 * math.log(2), 10, 'bound', 'discrete')
    assert row.value == pytest.approx(3)
    assert row.standard_error == pytest.approx(scipy.stats.sem(bits))
    assert row[2:] == (3, 'bound', 'discrete')
    one = bpd.bits_per_dim([math.log(2)], 1, 'exact', 'density', 0.5)
    assert (one.value, one.standard_error) == (pytest.approx(2), 0)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'kind': 'exakt'}, "did you mean 'exact'"),
        ({'likelihood': 'dequantized'}, "did you mean 'dequantised'"),
        ({'likelihood': 'discrete'}, 'spacing=0.1'),
        ({'dims': 0}, 'dims=0'),
        ({'spacing': 0.0}, 'spacing=0.0'),
        ({'nats': []}, r'shape \(0,\)'),
        ({'nats': [[1.0]]}, r'shape \(1, 1\)'),
        ({'nats': [1.0, math.inf]}, 'example 1'),
    ],
)
def test_what_says_nothing_is_refused_in_one_line(change, says):
    good = {'nats': [1.0], 'dims': 1, 'kind': 'exact', 'likelihood': 'density', 'spacing': 0.1}
    bpd.bits_per_dim(**good)
    with pytest.raises(UserError, match=says) as error:
        bpd.bits_per_dim(**good | change)
    assert '\n' not in str(error.value)
