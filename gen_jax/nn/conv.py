"""Convolutions that reach the machine's speed on a CPU as well.

Elsewhere XLA's own convolution is the fastest. On a CPU it runs near the matrix peak forward, at
half of it or less for the kernel's gradient, and, inside a loop or a branch, dozens of times slower
for the latter. It multiplies zeros too where an image is spread, as it is in the transpose of a
strided convolution. There

* a 3x3 convolution is computed by Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray 2016,
  "Fast Algorithms for Convolutional Neural Networks", section 4.1): 16 matrix products per 2x2
  outputs instead of 36, with rounding errors as small as those of the plain sum;
* a 4x4 or 5x5 convolution that halves or doubles an image works on its 2x2 squares as on channels,
  and is a 3x3 one of these;
* the gradients of any other are written as forward convolutions. XLA finds the fast way for these
  only, and turns a gradient into one at the top level of a program only.

`conv` goes into a layer: `nn.Conv(..., conv_general_dilated=conv)`. Parameters, results and
gradients are those of the layer without it.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

# A kernel's transform costs what so many tiles cost; fewer channels leave it nothing to win.
FEWEST_CHANNELS = 16
FEWEST_TILES = 64

# G (Lavin and Gray 2016, eq. 9), for both axes at once: 3x3 kernel, flattened -> 4x4, flattened.
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
G2D = np.kron(G, G).astype(np.float32)  # [16, 9]

NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


class Window(NamedTuple):
    """How a kernel moves over an image; each field has the height's numbers and the width's.

    Attributes:
      strides: of the kernel.
      padding: zeros before and after, of the dilated image.
      spread: one less than so many zeros between the image's pixels.
      dilation: and between the kernel's.
    """

    strides: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    spread: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    def transposed(self, image, kernel, out) -> 'tuple[Window, Window]':
        """Those of the gradients by image and by kernel, whose sizes (h, w) are given."""
        by_image, by_kernel = [], []
        sizes = zip(image, kernel, out, *self, strict=True)
        # What of the zeros after was used follows from the output's size.
        for n, k, m, stride, (before, _), spread, dilation in sizes:
            n, k, m = (n - 1) * spread + 1, (k - 1) * dilation + 1, (m - 1) * stride + 1
            first = k - 1 - before
            by_image.append((first, n + k - 1 - m - first))
            by_kernel.append((before, k - 1 + m - n - before))
        return (
            Window(self.spread, tuple(by_image), self.strides, self.dilation),
            Window(self.dilation, tuple(by_kernel), self.spread, self.strides),
        )


# Zeros before and after a kernel of height, width and window that make it 6x6.
HALVING = {
    (4, 4, Window((2, 2))): (1, 1),
    (5, 5, Window((2, 2), ((2, 2), (2, 2)))): (0, 1),
}
DOUBLING = {
    (4, 4, Window((1, 1), ((2, 2), (2, 2)), (2, 2))): (1, 1),
    (5, 5, Window((1, 1), ((2, 3), (2, 3)), (2, 2))): (1, 0),
}


def conv(lhs, rhs, window_strides, padding, **options):
    """`jax.lax.conv_general_dilated`, by the fastest way for its shapes and the platform.

    Args and result are those of `jax.lax.conv_general_dilated`. Of a convolution of images [b, h,
    w, c] in float32 the derivative is defined in reverse mode only, to any order.
    """
    window = _window(lhs, rhs, window_strides, padding, options)
    if window is None:
        return convolved(lhs, rhs, window_strides, padding, **options)
    plain = partial(conv2d, window=window)
    (b, h, w, c), (*side, _, o) = lhs.shape, rhs.shape
    if side == [3, 3] and window == Window() and _worth_it(b, h, w, c, o):
        return conv3x3(lhs, rhs)
    kind = *side, window
    if kind in DOUBLING and _worth_it(b, h, w, c, 4 * o):
        doubling = partial(_doubling, DOUBLING[kind])
        return lax.platform_dependent(lhs, rhs, cpu=doubling, default=plain)
    even = h % 2 == w % 2 == 0
    if kind in HALVING and even and _worth_it(b, h // 2, w // 2, 4 * c, o):
        halving = partial(_halving, HALVING[kind])
        return lax.platform_dependent(lhs, rhs, cpu=halving, default=plain)
    return plain(lhs, rhs)


def convolved(lhs, rhs, *window, **options):
    """`jax.lax.conv_general_dilated`, of images and kernels that no mesh splits by rows or columns.

    Where one axis of a mesh splits rows or columns, and another splits nothing, XLA's partitioner
    (jaxlib 0.10.2) adds up results over both, and all numbers come out twice as large, or more.
    Images are split so where a dense layer that is split makes their pixels.
    """
    spec = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get('dimension_numbers'))
    lhs, rhs = _whole(lhs, spec.lhs_spec), _whole(rhs, spec.rhs_spec)
    return _whole(lax.conv_general_dilated(lhs, rhs, *window, **options), spec.out_spec)


def _whole(x, spec):
    """An array whose axes `spec[2:]` the mesh of now, if there is one, does not split."""
    if jax.sharding.get_abstract_mesh().size < 2:
        return x
    axes = (None if i in spec[2:] else P.UNCONSTRAINED for i in range(x.ndim))
    return lax.with_sharding_constraint(x, P(*axes))


def _window(x, kernel, strides, padding, options) -> Window | None:
    """That of a plain convolution of images in float32; None of any other."""
    options = dict(options)
    spec = lax.conv_dimension_numbers(x.shape, kernel.shape, options.pop('dimension_numbers', None))
    spread = tuple(options.pop('lhs_dilation', None) or (1, 1))
    dilation = tuple(options.pop('rhs_dilation', None) or (1, 1))
    groups = options.pop('feature_group_count', 1)
    if spec != NHWC or groups > 1 or any(value not in (None, 1) for value in options.values()):
        return None
    if not x.dtype == kernel.dtype == jnp.float32:
        return None
    if isinstance(padding, str):
        sides = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(x.shape[1:3], sides, strides, padding)
    return Window(tuple(strides), tuple(tuple(pad) for pad in padding), spread, dilation)


def _worth_it(b, h, w, c, o) -> bool:
    """Whether a 3x3 convolution, [b, h, w, c] -> [b, h, w, o], is large enough for tiles."""
    return min(c, o) >= FEWEST_CHANNELS and b * -(-h // 2) * -(-w // 2) >= FEWEST_TILES


# --- any convolution -----------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(2,))
@partial(jax.jit, static_argnums=2)  # traced and lowered once for each shape
def conv2d(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Cross-correlation of images: [b, h, w, c], [k, l, c, o] -> [b, m, n, o]."""
    return _general(x, kernel, window)


@partial(jax.jit, static_argnums=0)
def _gradients(window: Window, kept: tuple, g: jax.Array) -> tuple:
    """Those of <conv2d(x, kernel), g>."""
    own, transposed = partial(_own_gradients, window), partial(_as_convolutions, window)
    return lax.platform_dependent(*kept, g, cpu=transposed, default=own)


def _as_convolutions(window, x, kernel, g):
    sizes = x.shape[1:3], kernel.shape[:2], g.shape[1:3]
    by_image, by_kernel = window.transposed(*sizes)
    # The image's channels are its examples, and so are the gradient's examples its channels.
    x, pixels = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)  # [c, h, w, b], [m, n, b, o]
    found = conv2d(x, pixels, by_kernel)  # [c, k, l, o]
    return conv2d(g, _turned(kernel), by_image), found.transpose(1, 2, 0, 3)


def _own_gradients(window, x, kernel, g):
    by_image = jax.linear_transpose(lambda x: _general(x, kernel, window), x)
    by_kernel = jax.linear_transpose(lambda kernel: _general(x, kernel, window), kernel)
    return *by_image(g), *by_kernel(g)


def _general(x, kernel, window):
    return convolved(x, kernel, *window, dimension_numbers=NHWC)


conv2d.defvjp(lambda x, kernel, window: (conv2d(x, kernel, window), (x, kernel)), _gradients)


class ConvTranspose(nn.Module):
    """The transpose of a strided convolution, through `conv`: what PyTorch calls transposed.

    Parameters and result are those of `flax.linen.ConvTranspose` with `transpose_kernel`.

    Attributes:
      features: channels of the result.
      kernel_size, strides: of that convolution.
      padding: zeros on each side of what that convolution sees, or those (before, after).
      use_bias: whether there is one.
      kernel_init: of [k, l, features, c].
      dtype: of the computation.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    padding: int | tuple[int, int]
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, strides * (h - 1) + k - all padding, ..., features]."""
        zeros = (self.padding,) * 2 if isinstance(self.padding, int) else self.padding
        shape = (*self.kernel_size, self.features, x.shape[-1])
        kernel = _turned(self.param('kernel', self.kernel_init, shape).astype(self.dtype))
        pads = [tuple(k - 1 - n for n in zeros) for k in self.kernel_size]
        options = {'lhs_dilation': self.strides, 'dimension_numbers': NHWC}
        x = conv(x.astype(self.dtype), kernel, (1, 1), pads, **options)
        if self.use_bias:
            x += self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


# --- of 2x2 squares ------------------------------------------------------------------------------


@jax.jit
def doubled(x: jax.Array, wide: jax.Array) -> jax.Array:
    """A 6x6 kernel over an image with a zero after each pixel, as a 3x3 one of 2x2 squares.

    Args:
      x: [b, h, w, c].
      wide: [6, 6, c, o].

    Returns:
      [b, 2h, 2w, o].
    """
    (b, h, w, c), o = x.shape, wide.shape[-1]
    # Output pixel 2n + p sees input pixel n + q - 1 through tap 2q + 1 - p of the wide kernel.
    squares = wide.reshape(3, 2, 3, 2, c, o)[:, ::-1, :, ::-1]
    kernel = squares.transpose(0, 2, 4, 1, 3, 5).reshape(3, 3, c, 4 * o)
    x = _plain(x, kernel).reshape(b, h, w, 2, 2, o)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, o)


@jax.jit
def halved(x: jax.Array, wide: jax.Array) -> jax.Array:
    """A 6x6 kernel with stride 2 and zeros of 2 around the image, as a 3x3 one of 2x2 squares.

    Args:
      x: [b, h, w, c]; h and w are even.
      wide: [6, 6, c, o].

    Returns:
      [b, h/2, w/2, o].
    """
    b, h, w, c = x.shape
    squares = wide.reshape(3, 2, 3, 2, c, -1).transpose(0, 2, 1, 3, 4, 5)
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, h // 2, w // 2, 4 * c)
    return _plain(x, squares.reshape(3, 3, 4 * c, -1))


def _doubling(zeros, x, kernel):
    return doubled(x, _widened(kernel, zeros))


def _halving(zeros, x, kernel):
    return halved(x, _widened(kernel, zeros))


def _widened(kernel, zeros):
    return jnp.pad(kernel, [zeros, zeros, (0, 0), (0, 0)])


def _plain(x, kernel):
    return conv(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=NHWC)


# --- by tiles ------------------------------------------------------------------------------------


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
    return convolved(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=NHWC)


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

    Row by row: 16 products of their own take XLA twice as long to load, all in one 7% longer to
    compute.
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
