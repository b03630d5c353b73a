"""How many operations a program asks for, counted in what JAX traces of it."""

import math

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr


def flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Multiplications and additions of all matrix products and convolutions whose results matter.

    Loops of known length count as often as they run; others, whose length is data, once. Of
    branches the most expensive counts, and of those by platform the default: a convolution counts
    as the plain sum even where it is computed in another way. Products with the zeros of a padding
    or between the pixels of a dilation do not count, as in XLA's own analysis; so each gradient of
    a convolution counts exactly what the convolution does. Kernels written by hand, as in Pallas,
    are not understood.
    """
    jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return sum(map(_equation_flops, needed.eqns))


def _equation_flops(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
        return _dot_flops(equation)
    if name == 'conv_general_dilated':
        return _conv_flops(equation)
    inner = [flops(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == 'cond':
        return inner[-1] if params.get('branches_platforms') else max(inner)
    return sum(inner) * (params['length'] if name == 'scan' else 1)


def _dot_flops(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params['dimension_numbers']
    lhs, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2 * out.size * math.prod(lhs.shape[i] for i in contracted)


def _conv_flops(equation: JaxprEqn) -> int:
    params, (lhs, rhs) = equation.params, (x.aval.shape for x in equation.invars)
    out = equation.outvars[0].aval.shape
    of_lhs, of_rhs, of_out = params['dimension_numbers']
    pairs = 1  # of a pixel of the result and one of the kernel that meet over a pixel of the image
    for i, (low, _) in enumerate(params['padding']):
        at_out = np.arange(out[of_out[2 + i]]) * params['window_strides'][i]
        at_kernel = np.arange(rhs[of_rhs[2 + i]]) * params['rhs_dilation'][i]
        at = np.add.outer(at_out, at_kernel) - low
        pixel, between = np.divmod(at, params['lhs_dilation'][i])
        pairs *= int(((between == 0) & (pixel >= 0) & (pixel < lhs[of_lhs[2 + i]])).sum())
    return 2 * pairs * out[of_out[0]] * out[of_out[1]] * rhs[of_rhs[1]]
