"""Every config's `tiny` variant, in each of its modes."""

import importlib.util
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from gen_jax.config import create
from gen_jax.errors import UserError
from gen_jax.runtime.program import Program

ROOT = Path(__file__).parents[1]
FINGERPRINT = re.compile('fingerprint ([0-9a-f]{64})')

# Of methods and networks that other configs or tests have too, which run: here what they compile is
# made.
KNOWN = (
    'adm_classifier_imagenet',
    'adm_imagenet',
    'biggan_cifar10',
    'biggan_imagenet',
    'dcgan_cifar10',
    'dcgan_folder64',
    'ddpm_cifar10',
    'ddpm_fashion_mnist',
    'edm_cifar10',
    'edm_ffhq64',
    'edm_imagenet64',
    'first_stage_256',
    'improved_ddpm_cifar10',
    'iwae_mnist',
    'ldm_fashion_mnist',
    'ncsnv2_cifar10',
    'progan_celebahq1024',
    'progan_cifar10',
    'rectified_flow_cifar10',
    'score_sde_cifar10',
    'sngan_cifar10',
    'sngan_imagenet128',
    'stylegan2_cifar10',
    'stylegan2_ffhq1024',
    'stylegan_ffhq1024',
    'vae_sprites',
    'vdvae_cifar10',
    'vdvae_fashion_mnist',
    'vq_vae2_256',
    'vq_vae_cifar10',
)


@pytest.mark.slow
@pytest.mark.usefixtures('traced_once')
@pytest.mark.parametrize(
    'config', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem
)
def test_every_tiny_config_runs_its_modes(capsys, tmp_path, config):
    """In this process, which is quicker; other tests start main.py."""

    def tiny():
        spec = importlib.util.spec_from_file_location(config.stem, config)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        return module.get_config('tiny')

    def run(mode):
        importlib.import_module(f'gen_jax.{mode}').run(tiny(), tmp_path)
        return capsys.readouterr().out

    if config.stem in KNOWN:
        program = Program(tiny(), create(tiny()), jax.devices())
        assert program.lower_train()
        assert not program.method.sample_step or program.lower_sample()
        return
    trained = FINGERPRINT.search(run('train'))[1]
    if config.stem.startswith(('autoenc', 'classifier', 'noised', 'vq_vae')):
        with pytest.raises(UserError, match='has no sample_step'):
            run('sample')
        # What encodes and decodes shows that instead.
        grids = [path.name for path in (tmp_path / 'samples').glob('*.png')]
        names = () if 'classifier' in config.stem else ('interpolation', 'reconstruction')
        assert sorted(grids) == [f'{name}_00000004.png' for name in names]
    else:
        run('sample')
        assert list((tmp_path / 'samples').glob('step_*.png'))
        assert len(list((tmp_path / 'samples').glob('at_step_*/*.png'))) == 8
    assert FINGERPRINT.search(run('inspect'))[1] == trained
    if 'gan' in config.stem or config.stem.startswith('vae'):
        run('explore')
        assert list((tmp_path / 'explore').glob('interpolate_*.png'))
    run('evaluate')
    report = json.loads((tmp_path / 'metrics.json').read_text())
    assert all(np.isfinite(row['value']) for row in report.values())
