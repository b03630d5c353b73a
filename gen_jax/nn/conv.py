"""3x3 convolutions that reach the machine's speed on a CPU as well.

Elsewhere XLA's own convolution is the fastest. On a CPU it runs near the matrix peak forward, at
half of it for the kernel's gradient, and, inside a loop, dozens of times slower for the latter.
There a convolution is computed by Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray 2016,
"Fast Algorithms for Convolutional Neural Networks", section 4.1): 16 matrix products per 2x2
outputs instead of 36, with rounding errors as small as those of the plain sum.

`conv` goes into a layer: `nn.Conv(..., conv_general_dilated=conv)`. Parameters, results and
gradients are those of the layer without it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# A kernel's transform costs what so many tiles cost; fewer channels leave it nothing to win.
FEWEST_CHANNELS = 16
FEWEST_TILES = 64

# G (Lavin and Gray 2016, eq. 9), for both axes at once: 3x3 kernel, flattened -> 4x4, flattened.
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
G2D = np.kron(G, G).astype(np.float32)  # [16, 9]

NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def conv(lhs, rhs, window_strides, padding, **options):
    """`jax.lax.conv_general_dilated`, by the fastest way for its shapes and the platform.

    Args and result are those of `jax.lax.conv_general_dilated`. Where the fast way is taken, the
    derivative is defined in reverse mode only, to any order.
    """
    if not _fast(lhs, rhs, window_strides, padding, options):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    return conv3x3(lhs, rhs)


def _fast(x, kernel, strides, padding, options) -> bool:
    """Whether this is a plain 3x3 convolution, in float32, large enough to be worth it."""
    spec = lax.conv_dimension_numbers(x.shape, kernel.shape, options.get('dimension_numbers'))
    plain = (
        spec == NHWC
        and kernel.shape[:2] == (3, 3)
        and tuple(strides) == (1, 1)
        and [tuple(pad) for pad in padding] == [(1, 1), (1, 1)]
        and tuple(options.get('lhs_dilation') or (1, 1)) == (1, 1)
        and tuple(options.get('rhs_dilation') or (1, 1)) == (1, 1)
        and options.get('feature_group_count', 1) == 1
    )
    b, h, w, _ = x.shape
    return (
        plain
        and x.dtype == kernel.dtype == jnp.float32
        and min(kernel.shape[2:]) >= FEWEST_CHANNELS
        and b * -(-h // 2) * -(-w // 2) >= FEWEST_TILES
    )


@jax.custom_vjp
@jax.jit  # traced and lowered once for each shape
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-correlation with zero padding of 1: [b, h, w, c], [3, 3, c, o] -> [b, h, w, o]."""
    return lax.platform_dependent(x, kernel, cpu=_winograd, default=_direct)


@jax.custom_vjp
@jax.jit  # traced and lowered once for each shape
def kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Gradient of <conv3x3(x, kernel), g> by the kernel: [b, h, w, c], [b, h, w, o] -> kernel."""
    return lax.platform_dependent(x, g, cpu=_winograd_gradient, default=_direct_gradient)


def _turned(kernel):
    """The kernel of the transposed convolution."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


conv3x3.defvjp(
    lambda x, kernel: (conv3x3(x, kernel), (x, kernel)),
    lambda kept, g: (conv3x3(g, _turned(kept[1])), kernel_gradient(kept[0], g)),
)
kernel_gradient.defvjp(
    lambda x, g: (kernel_gradient(x, g), (x, g)),
    lambda kept, kernel: (conv3x3(kept[1], _turned(kernel)), conv3x3(kept[0], kernel)),
)


def _direct(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=NHWC)


def _direct_gradient(x, g):
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _direct(x, kernel), kernel)(g)[0]


def _winograd(x, kernel):
    """Y = A^T [(G g G^T) * (B^T d B)] A over tiles d (eq. 8)."""
    (b, h, w, c), o = x.shape, kernel.shape[-1]
    U = (G2D @ kernel.reshape(9, -1)).reshape(4, 4, c, o)
    columns = [
        _fold((v.reshape(4, -1, c) @ u).reshape(*v.shape[:4], o))
        for u, v in zip(U, _input_tiles(x), strict=True)
    ]
    rows = zip(*(_fold(column) for column in zip(*columns, strict=True)), strict=True)
    y = jnp.stack([jnp.stack(row, 3) for row in rows], 2)  # [b, h/2, 2, w/2, 2, o]
    return y.reshape(b, 2 * y.shape[1], 2 * y.shape[3], o)[:, :h, :w]


def _winograd_gradient(x, g):
    """The transpose of `_winograd` by the kernel: G^T [(B^T d B)^T (A g A^T)] G over tiles."""
    c, o = x.shape[-1], g.shape[-1]
    N = [
        jnp.einsum('jnc,jno->jco', v.reshape(4, -1, c), m.reshape(4, -1, o))
        for v, m in zip(_input_tiles(x), _output_tiles(g), strict=True)
    ]
    return (G2D.T @ jnp.stack(N).reshape(16, -1)).reshape(3, 3, c, o)


def _input_tiles(x):
    """B^T d B for the 4x4 tiles d at every second pixel: 4 times [4, b, h/2, w/2, c], rounded up.

    Row by row: 16 products of their own take XLA twice as long to load, all in one a tenth longer
    to compute.
    """
    b, h, w, c = x.shape
    H, W = -(-h // 2), -(-w // 2)
    x = jnp.pad(x, ((0, 0), (1, 2 * H + 1 - h), (1, 2 * W + 1 - w), (0, 0)))
    x = x.reshape(b, H + 1, 2, W + 1, 2, c)
    rows = _spread_input([x[:, i // 2 : i // 2 + H, i % 2] for i in range(4)])  # [b, H, W+1, 2, c]
    return [
        jnp.stack(_spread_input([row[:, :, j // 2 : j // 2 + W, j % 2] for j in range(4)]))
        for row in rows
    ]


def _output_tiles(g):
    """A g A^T for the 2x2 tiles of g: 4 times [4, b, h/2, w/2, o], rounded up."""
    b, h, w, o = g.shape
    g = jnp.pad(g, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    g = g.reshape(b, -(-h // 2), 2, -(-w // 2), 2, o)
    rows = _spread_output(g[:, :, 0], g[:, :, 1])
    return [jnp.stack(_spread_output(row[:, :, :, 0], row[:, :, :, 1])) for row in rows]


def _spread_input(d):
    """B^T d, along one axis."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _fold(m):
    """A^T m, along one axis."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _spread_output(y0, y1):
    """A y, along one axis."""
    return y0, y0 + y1, y0 - y1, -y1
