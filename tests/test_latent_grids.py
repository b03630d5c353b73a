"""Grids of what a method encodes and decodes, and when the last ones are drawn."""

from types import SimpleNamespace

import numpy as np
import pytest

from gen_jax import train
from gen_jax.config import default
from gen_jax.data import sources
from gen_jax.data.pipeline import to_float
from gen_jax.errors import UserError
from gen_jax.method import Method
from gen_jax.sample import LatentGrids
from gen_jax.train import Loop


def program(**fields):
    """Of a method that halves images and doubles them again."""

    def given(examples):
        return {'image': to_float(np.stack([example['image'] for example in examples]))}

    return SimpleNamespace(
        method=Method(None, None, **fields),
        config=default('autoencoders.autoencoder'),
        given=given,
        encode=lambda state, batch: batch['image'] / 2 + state,
        decode=lambda state, latents, label: (latents - state) * 2,
    )


BOTH = {'encode': True, 'decode': True}  # it is asked for whether they are there


def test_reconstructions_lie_below_their_images_and_rows_lead_from_one_to_another():
    made = LatentGrids(program(**BOTH))(0.25)
    source = sources.open_source(program().config.data, 'test')
    images = np.stack([source[i]['image'] for i in range(16)])
    rows = made['reconstruction'].reshape(4, 8, *images.shape[1:])
    np.testing.assert_array_equal(rows[[0, 2]].reshape(images.shape), images)
    np.testing.assert_array_equal(rows[[1, 3]].reshape(images.shape), images)
    path = made['interpolation'].reshape(8, 8, *images.shape[1:])
    for step in range(8):
        want = images[:8] + step / 7 * (images[8:].astype(float) - images[:8])
        assert np.abs(path[:, step] - want).max() <= 0.51


@pytest.mark.parametrize('fields', [{}, {'encode': True}, {'decode': True}])
def test_without_one_of_both_there_are_none(fields):
    assert LatentGrids(program(**fields))(0.0) == {}


def test_a_split_that_is_not_there_is_told_at_once():
    made = program(**BOTH)
    made.config.data.eval_split = 'tset'
    with pytest.raises(UserError, match="no split 'tset', did you mean 'test'"):
        LatentGrids(made)


@pytest.mark.parametrize(('sample_step', 'first'), [(None, 'reconstruction'), (True, 'step')])
def test_the_end_of_a_run_draws_what_was_not_drawn(tmp_path, sample_step, first):
    """Also where --mode=sample left pictures of that step."""
    drawn, folder = [], tmp_path / 'samples'
    folder.mkdir()
    (folder / 'grid_00000004.png').touch()
    run = SimpleNamespace(
        program=program(**BOTH, sample_step=sample_step),
        folder=tmp_path,
        draw=lambda step, state: drawn.append(step),
    )
    Loop.draw_if_missing(run, 4, None)
    assert drawn == [4]
    (folder / f'{first}_00000004.png').touch()
    Loop.draw_if_missing(run, 4, None)
    assert drawn == [4]


def test_all_processes_draw_or_none_does(tmp_path, monkeypatch):
    """What process 0 wrote, others may not see yet."""
    monkeypatch.setattr(train, 'as_first_sees', lambda mine: True)
    run = SimpleNamespace(program=program(sample_step=True), folder=tmp_path)
    Loop.draw_if_missing(run, 4, None)
