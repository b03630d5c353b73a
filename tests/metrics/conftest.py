import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from gen_jax.interop.tensors import torch_name
from gen_jax.metrics.features import inception


@pytest.fixture(scope='session')
def inception_weights(tmp_path_factory):
    """Random weights with torch's names and layout, in which no signal dies."""
    module = inception.Inception(('2048', 'logits'))
    x = np.zeros((1, 299, 299, 3), np.float32)
    shapes = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), x))
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in sorted((torch_name(path[1:]), leaf.shape) for path, leaf in shapes.items()):
        if len(shape) > 1:
            values = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
            values = np.ascontiguousarray(np.moveaxis(values, (-1, -2), (0, 1)))
        elif name.endswith(('.bn.weight', '.running_var')):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.3, shape)
        tensors[name] = values.astype(np.float32)
    path = tmp_path_factory.mktemp('inception') / 'w.safetensors'
    save_file(tensors, path)
    return path
