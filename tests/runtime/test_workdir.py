import json

import ml_collections
import numpy as np
import pytest

from gen_jax.config import default
from gen_jax.errors import UserError
from gen_jax.runtime import workdir


def test_what_json_cannot_say_is_null(tmp_path):
    path = tmp_path / 'x.json'
    workdir.write_json(path, {'a': [np.inf, 1.5], 'b': {'c': float('nan')}, 'd': (2, 'e')})
    assert json.loads(path.read_text(), parse_constant=lambda name: name) == {
        'a': [None, 1.5],
        'b': {'c': None},
        'd': [2, 'e'],
    }
    assert [place.name for place in tmp_path.iterdir()] == ['x.json']


@pytest.mark.parametrize('text', ['{', '[]', '3', 'null', ''])
def test_a_file_that_holds_no_fields_is_told(tmp_path, text):
    path = tmp_path / 'best.json'
    path.write_text(text)
    with pytest.raises(UserError, match=r'best\.json is no JSON object: restore it'):
        workdir.read_json(path)


def test_a_name_too_long_for_a_folder_is_told(tmp_path):
    folder = tmp_path / ('a' * 300)
    with pytest.raises(UserError, match=f'cannot write to {folder} .File name too long.'):
        workdir.check(ml_collections.ConfigDict(), folder)


def test_what_evaluations_alone_ask_for_is_free(tmp_path):
    config = default('autoencoders.vae')
    workdir.claim(config, tmp_path)
    config.vae.weighed = 500
    workdir.check(config, tmp_path)
    config.vae.beta = 2.0
    with pytest.raises(UserError, match=r'belongs to another config: config\.vae\.beta was 1\.0'):
        workdir.check(config, tmp_path, after_training=True)


def test_a_field_that_came_after_a_run_is_its_default(tmp_path):
    config = default('diffusion.continuous', network='song')  # whose defaults are not the unet's
    workdir.claim(config, tmp_path)
    path = tmp_path / 'config.json'
    kept = json.loads(path.read_text())
    del kept['optimizer.decay'], kept['model.fir']
    path.write_text(json.dumps(kept))
    workdir.check(config, tmp_path)
    config.optimizer.decay = 'linear'
    with pytest.raises(UserError, match=r"config\.optimizer\.decay was 'cosine', is 'linear'"):
        workdir.check(config, tmp_path)
    kept['model.older'] = 3
    path.write_text(json.dumps(kept))
    config.optimizer.decay = 'cosine'
    with pytest.raises(UserError, match=r"config\.model\.older was 3, is 'not there'"):
        workdir.check(config, tmp_path)


@pytest.mark.parametrize(
    ('config', 'folder'),
    [
        ('/home/me/configs/ddpm_digits.py', 'runs/ddpm_digits'),
        ('configs/edm_fashion_mnist.py:flow', 'runs/edm_fashion_mnist_flow'),
        ('configs/of.mine.py:a:b', 'runs/of.mine_a:b'),
    ],
)
def test_variants_live_apart(config, folder):
    assert workdir.usual(config) == folder
