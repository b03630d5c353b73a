"""EDM's augmentation pipeline, given what is drawn."""

import jax
import numpy as np
from golden import difference, load

from gen_jax.diffusion import augment


def test_images_and_labels_agree():
    golden = load('augment_edm')
    done = augment.Augmentation(*golden['done'])
    np.testing.assert_allclose(done.labels(), golden['labels'], atol=1e-6)
    assert difference(jax.jit(augment.apply)(golden['x'], done), golden['images']) < 1e-4
