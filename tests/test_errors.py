"""Faults that are told in one line, in the words of who found them."""

import jax
import pytest

from gen_jax.config import default
from gen_jax.errors import UserError, out_of_memory


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        (
            'INTERNAL: Error dispatching computation: Out of memory allocating 2304 bytes.',
            'Out of memory allocating 2304 bytes',
        ),
        (
            'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.\nTrace:',
            'Out of memory while trying to allocate 17179869184 bytes',
        ),
        (
            'RESOURCE_EXHAUSTED: Attempting to allocate 1.50G. That was not possible.',
            'Attempting to allocate 1.50G. That was not possible',
        ),
    ],
)
def test_devices_that_have_no_memory_left_say_how_much_was_asked_for(text, told):
    error = jax.errors.JaxRuntimeError(text)
    assert out_of_memory(error, 'sample', default('autoencoders.vae')) == (
        f'{told}: lower config.sample.batch_size, or on several devices raise config.mesh.fsdp'
    )


def test_what_to_try_is_of_the_mode_and_the_config():
    full = MemoryError('Unable to allocate 7.45 GiB for an array')
    deep, plain = default('diffusion.gaussian'), default('autoencoders.vae')
    told = out_of_memory(full, 'train', deep)
    assert told.startswith('Unable to allocate 7.45 GiB for an array: lower config.batch_size, ')
    assert 'config.accumulate' in told
    assert "config.model.remat='blocks'" in told
    assert 'remat' not in out_of_memory(full, 'train', plain)
    deep.model.remat = 'blocks'
    assert 'remat' not in out_of_memory(full, 'train', deep)
    assert 'config.eval.batch_size' in out_of_memory(full, 'evaluate', plain)
    assert out_of_memory(MemoryError(), 'train', plain).startswith('the host has no memory left: ')


@pytest.mark.parametrize('error', [RuntimeError('INTERNAL: it broke'), UserError('no'), KeyError()])
def test_another_fault_is_none_of_memory(error):
    assert out_of_memory(error, 'train', default('autoencoders.vae')) is None
