import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict


def first_vectors(weight, is_embedding):
    """The first singular vectors of a weight as a matrix, by LAPACK."""
    W = weight.T if is_embedding else weight.reshape(-1, weight.shape[-1])
    left, _, right = np.linalg.svd(W, full_matrices=False)
    return {'u': right[0], 'v': left[:, 0]}


@pytest.fixture(scope='session')
def random_variables():
    """(net, *args) -> variables: random, as initial values hide what starts at zero."""

    def make(net, *args):
        shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), *args, train=False))
        leaves, tree = jax.tree.flatten(shapes)
        rng = np.random.default_rng(1)
        made = tree.unflatten([0.4 * rng.standard_normal(x.shape, np.float32) for x in leaves])
        params, vectors = flatten_dict(made['params']), {}
        for path in {path[:-1] for path in flatten_dict(made.get('spectral', {}))}:
            name = next(name for name in ('kernel', 'embedding') if (*path, name) in params)
            vectors[path] = first_vectors(params[*path, name], name == 'embedding')
        stats = flatten_dict(made.get('batch_stats', {}))
        stats = {path: x if path[-1] == 'mean' else abs(x) + 0.5 for path, x in stats.items()}
        return {**made, 'batch_stats': unflatten_dict(stats), 'spectral': unflatten_dict(vectors)}

    return make
