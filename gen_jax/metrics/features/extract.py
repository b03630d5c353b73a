"""Feature networks made runnable: uint8 images in, features out, over every device."""

from collections.abc import Callable

import jax
import numpy as np

from gen_jax.config import nearest
from gen_jax.data.pipeline import to_float
from gen_jax.errors import UserError
from gen_jax.interop.weights import find, sha256
from gen_jax.metrics.features import classifier, inception, resize
from gen_jax.runtime import sharding

NETWORKS = ('inception', 'digits', 'fashion_mnist')
DIMS = (2048, 768, 192, 64)


class Extractor:
    """A feature network with its weights and its way of bringing images to its size.

    Attributes:
      suffix: what the names of numbers seen through this network end in: '' for Inception's 2,048
        features, '_192' for fewer, '_digits' for the classifier of digits.
      provenance: network, file of the weights, its SHA-256, resize: JSON's types.
      batch_size: images that go through the network at a time.
      classes: how many the logits tell apart; None for a network that was not made for the data.
      check: raises UserError for images of a shape (h, w, c) that the network cannot see.
    """

    def __init__(
        self,
        forward: Callable,
        variables: dict,
        provenance: dict,
        suffix: str = '',
        host: Callable | None = None,
        check: Callable | None = None,
        classes: int | None = None,
        batch_size: int = 50,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Compiles nothing.

        Args:
          forward: (variables, images as `host` leaves them) -> {role: float32 [b, d]}.
          variables: the network's.
          provenance: see above.
          suffix: see above.
          host: what NumPy does to uint8 images [b, h, w, c] beforehand; None: nothing.
          check, classes: see above.
          batch_size: images at a time; rounded up to a multiple of the mesh's parts. It changes
            features by float rounding only.
          mesh: devices to spread a batch over; None: all.
        """
        self.suffix, self.provenance, self.classes = suffix, provenance, classes
        self._host, self.check = host or (lambda images: images), check or (lambda shape: None)
        mesh = mesh or sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
        parts = mesh.shape['data'] * mesh.shape['fsdp']
        self.batch_size = -(-batch_size // parts) * parts
        everywhere, spread = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        self._variables = jax.device_put(variables, everywhere)

        def run(variables, images):
            return forward(variables, jax.lax.with_sharding_constraint(images, spread))

        self._forward = jax.jit(run, out_shardings=everywhere)

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Features of uint8 [n, h, w, c], c = 1 or 3, as {role: float32 [n, d]}; n >= 1.

        Roles are 'pool' (what distances are measured in), 'spatial' and 'logits', as far as they
        were asked for. The last batch is filled up, and its filling dropped.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UserError(
                f'images are {images.dtype} {list(images.shape)}: expected uint8 [n, h, w, 1 or 3]'
            )
        self.check(images.shape[1:])
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            filled = np.concatenate([batch, np.repeat(batch[-1:], self.batch_size - len(batch), 0)])
            made = jax.device_get(self._forward(self._variables, self._host(filled)))
            parts.append({role: x[: len(batch)] for role, x in made.items()})
        return {role: np.concatenate([part[role] for part in parts]) for role in parts[0]}


def open_extractor(
    network: str = 'inception',
    weights: str = '',
    resize_name: str = 'tf1',
    roles: tuple[str, ...] = ('pool',),
    dims: int = 2048,
    batch_size: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    padded: bool = False,
) -> Extractor:
    """The extractor of a network's name.

    Args:
      network: 'inception', or a shipped classifier: 'digits', 'fashion_mnist'.
      weights: Inception's file, or a classifier's own; '': the cache or a download, or the shipped.
      resize_name: for Inception: a name in `resize.RESIZES`.
      roles: what is wanted, of 'pool', 'spatial' (Inception only) and 'logits'.
      dims: which of Inception's features are the pool: 2048, 768, 192 or 64.
      batch_size: see `Extractor`; 0: what is fastest here.
      mesh: see `Extractor`.
      padded: images larger than a classifier's are its images with a margin, which is cut off.

    Raises:
      UserError: no such network, resize or role, or weights missing or of another network.
    """
    if network not in NETWORKS:
        raise UserError(f'unknown network {network!r}{nearest(network, NETWORKS)}')
    if not batch_size:
        # On a CPU the maps of several images leave the caches: 32 at a time took 1.4 times as long.
        one = network == 'inception' and jax.default_backend() == 'cpu'
        batch_size = 1 if one else 50
    runs = {'batch_size': batch_size, 'mesh': mesh}
    if network == 'inception':
        return _inception(weights, resize_name, roles, dims, **runs)
    return _classifier(network, weights, roles, padded, **runs)


def _inception(weights, resize_name, roles, dims, **runs) -> Extractor:
    if resize_name not in resize.RESIZES:
        raise UserError(f'unknown resize {resize_name!r}{nearest(resize_name, resize.RESIZES)}')
    if dims not in DIMS:
        raise UserError(f'Inception has no {dims} features: expected one of {DIMS}')
    # The head's bias is left out, as torch-fidelity does; the numbers of others hardly differ.
    outputs = {'pool': str(dims), 'spatial': 'spatial', 'logits': 'logits_unbiased'}
    named = {role: outputs[role] for role in roles}
    path = find(inception.WEIGHTS, weights, '--weights=FILE or --config.eval.weights=FILE')
    variables = inception.load(path)
    module, how = inception.Inception(tuple(named.values())), resize.RESIZES[resize_name]

    def forward(variables, images):
        found = module.apply(variables, how.device(images))
        return {role: found[output] for role, output in named.items()}

    provenance = {'network': 'inception-2015-12-05', 'resize': resize_name, 'dims': dims}
    provenance |= {'weights': str(path), 'weights_sha256': sha256(path)}
    suffix = '' if dims == 2048 else f'_{dims}'
    return Extractor(forward, variables, provenance, suffix, how.host, **runs)


def _classifier(network, weights, roles, padded, **runs) -> Extractor:
    if 'spatial' in roles:
        raise UserError(f"network {network!r} has no spatial features, which 'sfid' needs")
    module, variables, described = classifier.load(weights or network)
    size, channels = described['image_size'], described['channels']

    def check(shape):
        h, w, c = shape
        framed = padded and h == w and h > size and (h - size) % 2 == 0
        if c != channels or not ((h, w) == (size, size) or framed):
            raise UserError(
                f'network {network!r} sees {size}x{size} images of {channels} channel(s); these '
                f'are {h}x{w} of {c}: choose another network'
            )

    def forward(variables, images):
        margin = (images.shape[1] - size) // 2
        inner = slice(margin, margin + size)
        found = module.apply(variables, to_float(images[:, inner, inner]))
        return {role: found[role] for role in roles}

    how = f'none; cut to {size}x{size}' if padded else 'none'
    provenance = {'network': network, 'resize': how, 'dims': module.features}
    provenance |= {'weights': weights or 'shipped', 'weights_sha256': sha256(described['path'])}
    named = {'suffix': f'_{network}', 'check': check, 'classes': described['classes']}
    return Extractor(forward, variables, provenance, **named, **runs)
