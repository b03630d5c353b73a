"""The study of anomaly detection, on digits."""

import json
import types

import anomaly
import numpy as np
import pytest
from anomaly import SCORES, Detector, auroc, configured, measured, opened, report, unusual
from PIL import Image

from gen_jax.errors import UserError


@pytest.fixture(scope='module')
def digits():
    """A config of a small VAE, and both splits."""
    config = configured('digits', 8, 1, 60, 2)
    config.model.update({'channels': 4, 'hidden': 16, 'latent_dim': 4})
    return config, *(anomaly.read(config, split) for split in ('train', 'test'))


@pytest.mark.slow
def test_a_row_has_the_chances_that_others_rank_higher(digits):
    config, train, test = digits
    detector = Detector(config)
    row = measured(detector, '0', train, test)
    assert row.keys() == {*SCORES, 'seconds'}
    images, labels = train
    state = detector.trained(images[labels == 0])
    found = detector.scores(state, test[0])
    ours, others = (found['elbo'][test[1] == 0], found['elbo'][test[1] != 0])
    # By counting pairs.
    pairs = others[:, None] - ours
    assert row['elbo'] == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert row['pca'] > 0.98  # zeros are unlike the rest
    assert row['reconstruction'] > 0.7
    # Scores are of what is unusual: the lower the bound, the higher, and the ELBO is the lower one.
    assert found['elbo'].mean() > found['iw_bound'].mean() > 0
    # 64 pixels; the bound is in nats.
    np.testing.assert_allclose(found['bits'], found['iw_bound'] / 64 / np.log(2), rtol=1e-5)


def test_what_components_leave_is_the_distance_from_their_plane(digits):
    config, *_ = digits
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(4, 64))
    of = 128 + (rng.normal(size=(500, 4)) @ plane)
    away = rng.normal(size=64)
    away -= plane.T @ np.linalg.lstsq(plane.T, away)[0]
    images = np.stack([of[0], of[0] + 20 * away])
    shaped = [np.round(x).clip(0, 255).astype(np.uint8).reshape(-1, 8, 8, 1) for x in (of, images)]
    left = Detector(config).left_by_pca(shaped[1], shaped[0])
    assert left[0] < 1e-4
    assert left[1] == pytest.approx(np.square(20 * away / 127.5).mean(), rel=0.05)


def test_auroc_is_the_chance_of_a_higher_score():
    assert auroc(np.array([0, 1, 2]), np.array([1.5, 3])) == pytest.approx(5 / 6)
    assert auroc(np.ones(4), np.ones(3)) == 0.5


def test_images_of_other_kinds():
    found = unusual((28, 28, 1))
    assert {name: x.shape for name, x in found.items()} == {
        'digits': (1797, 28, 28, 1),
        'flat': (256, 28, 28, 1),
        'noise': (1000, 28, 28, 1),
    }
    assert all(x.dtype == np.uint8 for x in found.values())
    assert (found['flat'].std((1, 2, 3)) == 0).all()


def test_the_table_has_means_and_the_papers_beside_all_of_fashion_mnist():
    rows = {str(i): dict.fromkeys(SCORES, 0.5 + i / 100) | {'seconds': 1} for i in range(10)}
    text = report(rows, 'tfds:fashion_mnist')
    assert '| mean of 10 | 54.5 | 54.5 | 54.5 | 54.5 |' in text
    assert '| boot | 59.0 |' in text
    assert '93.5' in text
    assert '93.5' not in report(rows, 'digits')
    # Of other images neither names nor more than ten classes are known.
    assert '| 11 | 50.0 |' in report({**rows, '11': rows['0']}, 'folder:/data/fashion_mnist')
    del rows['3']
    assert '93.5' not in report(rows, 'tfds:fashion_mnist')
    kind = dict.fromkeys(SCORES, 0.25) | {'bits': 1.5}
    rows = {'all': {'usual': {'bits': 3.0}, 'digits': kind, 'flat': kind, 'noise': kind}}
    assert '| digits | 1.50 | 25.0 | 25.0 | 25.0 | 25.0 |' in report(rows, 'digits')


def folder(place, classes):
    """A source of one grey image for each class of each split; '': of none."""
    rng = np.random.default_rng(0)
    for split, names in classes.items():
        for name in names:
            (place / split / name).mkdir(parents=True)
            image = Image.fromarray(rng.integers(256, size=(8, 8)).astype(np.uint8))
            image.save(place / split / name / '0.png')
    return f'folder:{place}'


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'source': {'train': [''], 'test': ['']}}, 'expected images with labels'),
        ({'source': {'train': ['a', 'b'], 'test': ['b']}}, r'\[0, 1\] to train on and \[1\] to'),
        ({'source': {'train': ['a'], 'test': ['a']}}, 'expected two or more to test'),
        ({'source': 'shapes', 'size': 16}, r'but --channels=1: set --channels=3'),
        ({'channels': 3}, r'set --channels=1'),
        ({'channels': 2}, r'--channels'),
        ({'size': 5}, r'--size=5: expected a multiple of 4'),
        ({'source': 'digit'}, "unknown --source='digit', did you mean 'digits'"),
    ],
    ids=str,
)
def test_images_that_cannot_be_ranked_are_told_by_their_flags(tmp_path, changes, says):
    asked = {'source': 'digits', 'size': 8, 'channels': 1, 'steps': 1, 'samples': 1, **changes}
    if isinstance(asked['source'], dict):
        asked['source'] = folder(tmp_path, asked['source'])
    with pytest.raises(UserError, match=says) as error:
        opened(**asked)
    assert '\n' not in str(error.value)


@pytest.mark.slow
def test_images_may_have_colours(tmp_path):
    source = folder(tmp_path, {split: ['a', 'b'] for split in ('train', 'test')})
    detector, train, test = opened(source=source, size=8, channels=3, steps=1, samples=1)
    assert test[0].shape == (2, 8, 8, 3)
    row = measured(detector, 'all', train, test)
    assert set(row['noise']) == {*SCORES, 'bits'}


def test_rows_table_and_figure_are_left_and_it_goes_on(monkeypatch, tmp_path, capsys):
    """Without training, which has tests of its own: digits of 8x8."""
    pytest.importorskip('matplotlib')
    made = []

    def instead(detector, name, train, test):
        made.append(name)
        assert train[0].shape == (1501, 8, 8, 1)
        assert test[0].shape == (296, 8, 8, 1)
        return dict.fromkeys(SCORES, 0.25 + int(name) / 10)

    def run(*rows, **changes):
        asked = {'source': 'digits', 'size': 8, 'channels': 1, 'steps': 2, 'samples': 1}
        asked |= {'rows': rows, 'plot': True, 'out': str(tmp_path), **changes}
        monkeypatch.setattr(anomaly, 'FLAGS', types.SimpleNamespace(**asked))
        made.clear()
        anomaly.main()
        return capsys.readouterr().out

    monkeypatch.setattr(anomaly, 'measured', instead)
    assert '| 3 | 55.0 |' in run('3')
    out = run('1', '3')
    assert made == ['1']
    assert '| mean of 2 | 45.0 |' in out
    path = tmp_path / 'anomaly.json'
    assert list(json.loads(path.read_text())['rows']) == ['3', '1']
    assert path.with_suffix('.md').read_text() == out.removesuffix('\n')
    assert path.with_suffix('.png').stat().st_size > 1000
    with pytest.raises(UserError, match='steps was 2, is 3'):
        run('3', steps=3)
    monkeypatch.setattr(anomaly, 'BATCH', 64)
    out = run('3')
    assert made == ['3']
    assert 'mean of' not in out  # the other row is of another batch
