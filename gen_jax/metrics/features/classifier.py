"""Small convolutional classifiers, whose last hidden layer serves as features of small images.

Inception-v3 knows photographs of 299x299 pixels; what it says of 8x8 digits is hard to interpret. A
network trained on the data itself says whether samples are recognised as their classes, and how far
the distributions of its features lie apart. Numbers through it are called by its name, such as
`fid_digits`, and compare with nothing but numbers through the same file.

As a method it trains (`config.method = 'metrics.features.classifier'`) and evaluates, but draws no
samples. `load` reads the networks that come with the package, and those that `save` wrote.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from gen_jax.config import are_whole, nearest, require, require_average
from gen_jax.errors import UserError
from gen_jax.method import (
    Method,
    Net,
    check_batch,
    descend,
    optimizer,
    optimizer_defaults,
    recognised,
)

# What a file must say of its network; the rest of its metadata is for people.
DESCRIBES = ('image_size', 'channels', 'classes', 'widths', 'features')
TEXT = 'classifier'  # the name of the metadata's text
MEND = 'expected what experiments/ship_classifier.py writes'


def defaults() -> dict:
    """This method's part of the config."""
    return {
        'model': {
            'widths': (32, 64),  # of the convolutions; after each, the image is halved
            'features': 64,  # width of the last hidden layer
            'dropout': 0.0,  # probability, before and after the last hidden layer
            'dtype': 'float32',  # of the computation in training: float32 or bfloat16
        },
        'shift': 1,  # training images move by up to this many pixels along each axis; 0: none
        'optimizer': optimizer_defaults(learning_rate=1e-3),
        'ema_decay': 0.999,  # of the weights that evaluate; 0: none kept
    }


class State(struct.PyTreeNode):
    """One network."""

    net: Net


class Classifier(nn.Module):
    """Convolutions that each halve the image, one hidden layer, and the classes' logits.

    Attributes:
      widths: of the convolutions.
      features: width of the hidden layer.
      classes: number of classes.
      dropout: probability, before and after the hidden layer.
      dtype: of the computation; parameters and what comes out stay float32.
    """

    widths: tuple[int, ...]
    features: int
    classes: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False) -> dict:
        """What the network says of images.

        Args:
          x: float32 [b, h, w, c] in [-1, 1]; h and w at least 2 ** len(widths).
          train: whether to drop; needs the rng 'dropout'.

        Returns:
          'pool', the hidden layer's non-negative output, float32 [b, features]; 'logits', float32
          [b, classes].
        """
        drop = nn.Dropout(self.dropout, deterministic=not train)
        # Accelerators would otherwise round the factors, and features with them.
        exact = {'precision': 'highest', 'dtype': self.dtype}
        conv, dense = (functools.partial(f, **exact) for f in (nn.Conv, nn.Dense))
        for i, width in enumerate(self.widths):
            x = nn.relu(conv(width, (3, 3), name=f'conv_{i}')(x))  # [b, h, w, width]
            x = _halved(x)  # [b, h // 2, w // 2, width]
        x = drop(x.reshape(len(x), -1))  # [b, h * w * width]
        pool = nn.relu(dense(self.features, name='hidden')(x))  # [b, features]
        seen = {'pool': pool, 'logits': dense(self.classes, name='out')(drop(pool))}
        return {name: x.astype(jnp.float32) for name, x in seen.items()}


def _halved(x: jax.Array) -> jax.Array:
    """The largest of each 2x2 pixels, [b, h // 2, w // 2, c]."""
    # Max pooling; but XLA's gradient of `reduce_window` makes a step on a CPU 2.5 times as long.
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def shifted(key: jax.Array, image: jax.Array, shift: int) -> jax.Array:
    """Images moved by -shift..shift whole pixels along each axis, each by its own draw.

    Args:
      key: of all draws.
      image: [b, h, w, c].
      shift: pixels; what moves in repeats the pixels at the edge.
    """
    padded = jnp.pad(image, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode='edge')
    corners = jax.random.randint(key, (len(image), 2), 0, 2 * shift + 1)

    def cut(image_, corner):
        return jax.lax.dynamic_slice(image_, (*corner, 0), image.shape[1:])

    return jax.vmap(cut)(padded, corners)  # [b, h, w, c]


def create(config: ml_collections.ConfigDict) -> Method:
    """The classifier that `defaults` describes, trained by cross-entropy.

    `evaluate_step` gives `accuracy`, 1 where the largest logit is the label's and 0 elsewhere, and
    `cross_entropy` in nats, by the averaged parameters where there are any.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    module, tx, data = build(config), optimizer(config.optimizer), config.data

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        return State(Net.create(module.init(key, batch['image']), tx, config.ema_decay > 0))

    def train_step(key, state, batch):
        check_batch(batch, data.image_size, data.channels)
        shift_key, dropout_key = jax.random.split(key)
        x = shifted(shift_key, batch['image'], config.shift)

        def loss_fn(params, extra, seen):
            x, label, key = seen
            rngs = {'dropout': key}
            logits = module.apply({'params': params}, x, train=True, rngs=rngs)['logits']
            terms = jax.tree.map(jnp.mean, recognised(logits, label))
            return terms.pop('cross_entropy'), (extra, terms)

        seen = x, batch['label'], dropout_key
        net, metrics = descend(state.net, loss_fn, tx, config.ema_decay, seen, config.accumulate)
        return State(net), metrics

    def evaluate_step(keys, state, batch):
        del keys
        check_batch(batch, data.image_size, data.channels)
        logits = module.apply(state.net.variables(ema=True), batch['image'])['logits']
        return recognised(logits, batch['label'])

    return Method(init, train_step, evaluate_step=evaluate_step)


def build(config: ml_collections.ConfigDict) -> Classifier:
    """The module that a config describes.

    Raises:
      UserError: where its numbers do not fit each other.
    """
    model, data = config.model, config.data
    require(data.num_classes >= 2, 'data.num_classes', data.num_classes, 'the number of classes')
    require(
        len(model.widths) > 0 and are_whole(model.widths),
        'model.widths',
        model.widths,
        'one whole number of at least 1 per convolution, such as (32, 64)',
    )
    least, size = 2 ** len(model.widths), data.image_size
    why = f'at least {least}, as the {len(model.widths)} convolutions of model.widths halve it'
    require(size >= least, 'data.image_size', size, why)
    require(model.features >= 1, 'model.features', model.features, 'at least 1')
    require(0 <= model.dropout < 1, 'model.dropout', model.dropout, 'a probability below 1')
    require(0 <= config.shift < size, 'shift', config.shift, 'pixels, 0 or more, below the size')
    require_average(config)
    dtypes = ('float32', 'bfloat16')
    require(model.dtype in dtypes, 'model.dtype', model.dtype, "'float32' or 'bfloat16'")
    dtype = jnp.dtype(model.dtype)
    return Classifier(tuple(model.widths), model.features, data.num_classes, model.dropout, dtype)


def save(path: Path, params: dict, metadata: dict) -> None:
    """Writes what `load` reads, in one stroke.

    Args:
      path: a .safetensors file, replaced where it exists.
      params: a `Classifier`'s 'params'.
      metadata: `DESCRIBES` and whatever people should know, of types that JSON has.
    """
    tensors = {'.'.join(name): np.asarray(x) for name, x in flatten_dict(params).items()}
    partial = path.with_name(f'.{path.name}.partial')
    # One text, as safetensors writes several in random order: the same network is the same bytes.
    # And not by `save_file`, whose files nobody but their owner can read.
    partial.write_bytes(to_bytes(tensors, {TEXT: json.dumps(metadata)}))
    os.replace(partial, path)


def load(name_or_path: str) -> tuple[Classifier, dict, dict]:
    """A trained classifier.

    Args:
      name_or_path: 'digits' or 'fashion_mnist', which come with the package, or a file that `save`
        wrote.

    Returns:
      The module, its variables as float32 numpy arrays, and what the file says: `image_size`,
      `channels`, `classes`, `widths`, `features`; in the package's files `accuracy` on the `n`
      images of `data`, `source` of the training images, `config` and `steps`; and its `path`.

    Raises:
      UserError: no such file, or one that holds another network.
    """
    path = _find(str(name_or_path))
    try:
        with safe_open(path, framework='numpy') as file:
            metadata = json.loads((file.metadata() or {}).get(TEXT, '{}'))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise UserError(f'{path} is no file of a classifier ({error}): {MEND}') from None
    if missing := [name for name in DESCRIBES if name not in metadata]:
        raise UserError(f'{path}: its metadata lack {missing[0]!r}: {MEND}')
    module = Classifier(tuple(metadata['widths']), metadata['features'], metadata['classes'])
    _check_tensors(module, metadata, tensors, path)
    params = unflatten_dict({tuple(name.split('.')): x for name, x in tensors.items()})
    return module, {'params': params}, metadata | {'path': str(path)}


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith('.safetensors'):
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(f'{path} not found: expected a file of a classifier')
        return path
    shipped = {path.stem: path for path in Path(__file__).parent.glob('*.safetensors')}
    if name_or_path not in shipped:
        raise UserError(
            f'unknown classifier {name_or_path!r}{nearest(name_or_path, shipped)}; '
            'or give the path of a .safetensors file'
        )
    return shipped[name_or_path]


def _check_tensors(module: Classifier, metadata: dict, tensors: dict, path: Path) -> None:
    size, channels = metadata['image_size'], metadata['channels']
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    want = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), x)['params'], sep='.')
    for name in [*want, *tensors]:
        have = f'{tensors[name].dtype} {tensors[name].shape}' if name in tensors else 'nothing'
        expected = f'float32 {want[name].shape}' if name in want else 'nothing'
        if have != expected:
            raise UserError(
                f'{path} holds another network: {name} is {have} where its metadata make it '
                f'{expected}: {MEND}'
            )
