"""Writes golden/disentanglement.npz: `python tests/parity/record/disentanglement.py --source=...`.

The source is a checkout of github.com/google-research/disentanglement_lib, or the source package of
its release 1.5 (Apache 2.0; recorded with scikit-learn 1.9). Its metrics import TensorFlow through
gin, which binds arguments and computes nothing: here they are given, and a stand-in is imported.
"""

import argparse
import sys
import types
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import save

SIZES = (3, 5, 4)
BATCH, TRAIN, TEST, SPREAD = 4, 60, 40, 200


def represent(factors):
    """Codes [n, 4] of factors [n, 3], entangled and noisy; the last one hardly varies."""
    shape, x, y = np.asarray(factors, np.float64).T
    noise = np.sin(78.233 * shape + 12.9898 * x + 37.719 * y)
    return np.stack([x + y + noise, y + shape - noise, shape - 2 * noise, 0.02 * noise], 1)


class Data:
    """What the reference calls ground-truth data; an observation is the factors themselves."""

    num_factors = len(SIZES)

    def sample_factors(self, n, random):
        return np.stack([random.randint(size, size=n) for size in SIZES], 1)

    def sample_observations_from_factors(self, factors, random):
        del random
        return factors

    def sample(self, n, random):
        factors = self.sample_factors(n, random)
        return factors, factors

    def sample_observations(self, n, random):
        return self.sample_factors(n, random)


class Drawn(np.random.RandomState):
    """Keeps the single numbers drawn: which factor a group shares."""

    def __init__(self, seed):
        super().__init__(seed)
        self.single = []

    def randint(self, *args, **options):
        found = super().randint(*args, **options)
        if not options:
            self.single.append(found)
        return found


def kept():
    """(a represent that keeps the codes it gives, these)."""
    codes = []

    def spy(observations):
        codes.append(represent(observations))
        return codes[-1]

    return spy, codes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    gin = types.ModuleType('gin')
    gin.tf = types.ModuleType('gin.tf')
    gin.tf.REQUIRED = gin.REQUIRED = None
    gin.tf.configurable = gin.configurable = lambda *args, **options: lambda function: function
    sys.modules.update({'gin': gin, 'gin.tf': gin.tf})
    from disentanglement_lib.evaluation.metrics import beta_vae, dci, factor_vae, mig, utils

    arrays, data = {}, Data()
    mus, ys = utils.generate_batch_factor_code(data, represent, 300, np.random.RandomState(0), 16)
    utils.make_discretizer = lambda target: utils._histogram_discretize(target, 20)
    found = mig.compute_mig(data, represent, np.random.RandomState(0), num_train=300)
    binned = utils.make_discretizer(mus)
    arrays |= {'codes': mus.T, 'factors': ys.T, 'mig': found['discrete_mig']}
    arrays['information'] = utils.discrete_mutual_info(binned, ys)

    np.random.seed(3)  # noqa: NPY002 (scikit-learn draws from it where it is given nothing)
    random, fit = np.random.RandomState(1), dci.compute_importance_gbt

    def fit_and_keep(*args):
        found = fit(*args)
        arrays['dci_importance'] = found[0]
        return found

    dci.compute_importance_gbt = fit_and_keep
    found = dci.compute_dci(data, represent, random, num_train=TRAIN, num_test=TEST)
    random = np.random.RandomState(1)
    for name, n in (('train', TRAIN), ('test', TEST)):
        x, y = utils.generate_batch_factor_code(data, represent, n, random, 16)
        arrays |= {f'dci_{name}_codes': x.T, f'dci_{name}_factors': y.T}
    for name in ('disentanglement', 'completeness', 'informativeness_test'):
        arrays[f'dci_{name}'] = found[name]

    random, (spy, codes) = Drawn(2), kept()
    factor_vae._prune_dims = lambda variances: np.sqrt(variances) >= 0.05
    groups = {'batch_size': BATCH, 'num_train': TRAIN, 'num_eval': TEST}
    found = factor_vae.compute_factor_vae(data, spy, random, **groups, num_variance_estimate=SPREAD)
    first = len(codes) - TRAIN - TEST
    arrays['votes_spread'] = np.concatenate(codes[:first])
    arrays['votes_codes'] = np.stack(codes[first:])
    arrays |= {'votes_shared': random.single, 'votes_score': found['eval_accuracy']}

    random, (spy, codes) = Drawn(4), kept()
    found = beta_vae.compute_beta_vae_sklearn(data, spy, random, **groups)
    pairs = np.stack(codes).reshape(TRAIN + TEST, 2, BATCH, -1)
    shared = random.single[: TRAIN + TEST]
    arrays |= {'pairs': pairs, 'pairs_shared': shared, 'pairs_score': found['eval_accuracy']}
    save('disentanglement', **arrays)
    print({name: x for name, x in arrays.items() if np.ndim(x) == 0})


if __name__ == '__main__':
    main()
