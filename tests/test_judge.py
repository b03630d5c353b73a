"""The numbers of `config.eval`, in the modes evaluate and train."""

import json
import shutil
import statistics
import types

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from gen_jax import encoded, evaluate, judge, sample, train
from gen_jax.config import create, default
from gen_jax.data import sources
from gen_jax.data.pipeline import to_uint8
from gen_jax.errors import UserError
from gen_jax.metrics.features.extract import open_extractor
from gen_jax.metrics.fid import Moments, fid
from gen_jax.runtime.program import Program


def small(**changes):
    """An autoencoder of a few thousand parameters on the digits, judged by their classifier."""
    config = default('autoencoders.vae')
    config.update_from_flattened_dict(
        {
            'steps': 6,
            'batch_size': 8,
            'log_every': 2,
            'sample_every': 0,
            'checkpoint_every': 3,
            'data.num_classes': 10,
            'model.channels': 4,
            'model.latent_dim': 2,
            'sample.batch_size': 64,
            'eval.network': 'digits',
            'eval.metrics': ('fid', 'prdc', 'accuracy', 'modes'),
            'eval.n': 300,
            'eval.every_n': 64,
            **changes,
        }
    )
    return config


def in_training(**changes):
    return small(**{'eval.every': 2, 'eval.every_metrics': ('fid',), **changes})


def report(folder):
    return json.loads((folder / 'metrics.json').read_text())


def test_one_example_has_a_value_and_no_error(tmp_path, capsys):
    Image.new('L', (8, 8)).save(tmp_path / '0.png')
    fields = {'data.source': f'folder:{tmp_path}', 'data.eval_split': 'train'}
    program = types.SimpleNamespace(
        config=small(**fields, **{'data.num_classes': 0}),
        rows=None,
        to_global=lambda batch: batch,
        evaluate=lambda state, indices, batch: {'elbo': np.full(len(indices), 3.0, np.float32)},
    )
    rows = judge.per_example(program, None)
    assert (rows['elbo']['value'], rows['elbo']['standard_error'], rows['elbo']['n']) == (
        3,
        None,
        1,
    )
    evaluate.print_rows(rows)
    assert capsys.readouterr().out == 'elbo 3 (1 images)\n'


@pytest.fixture
def trained(tmp_path):
    train.run(small(), tmp_path)
    return tmp_path


@pytest.mark.slow
def test_fid_is_that_of_the_samples_and_says_where_it_comes_from(trained):
    evaluate.run(small(), trained)
    rows = report(trained)
    names = ('fid', 'precision', 'recall', 'f1', 'density', 'coverage', 'accuracy', 'modes')
    assert sorted(rows) == sorted(f'{name}_digits' for name in names)
    # By hand, from the images that --mode=sample writes.
    config = small(**{'sample.n': 300, 'sample.format': 'npz', 'sample.batch_size': 7})
    sample.run(config, trained)
    with np.load(trained / 'samples/at_step_00000006_seed_0/samples.npz') as made:
        samples = made['images']
    look = open_extractor('digits', batch_size=11)
    real, test = (
        np.concatenate(list(sources.images_of(sources.open_source(config.data, split))))
        for split in ('train', 'test')
    )
    real, test, samples = (Moments.of(look(x)['pool']) for x in (real, test, samples))
    row = rows['fid_digits']
    assert row['value'] == pytest.approx(fid(real, samples), rel=1e-6)
    assert row['floor'] == pytest.approx(fid(real, test), rel=1e-6)
    assert row['floor'] < 0.2 * row['value']
    assert (row['n'], row['n_reference'], row['floor_n']) == (300, 1501, 296)
    assert row['reference'] == 'digits train'
    assert row['network'] == 'digits'
    assert len(row['weights_sha256']) == 64
    assert (row['step'], row['seed'], row['ema']) == (6, 0, True)


@pytest.mark.slow
def test_what_is_encoded_and_decoded_is_compared_and_probed(tmp_path):
    changes = {'data.num_classes': 0, 'eval.metrics': ('rfid', 'probe', 'active_units')}
    config = small(**changes)
    train.run(config, tmp_path)
    evaluate.run(config, tmp_path)
    rows = report(tmp_path)
    assert sorted(rows) == ['active_units', 'probe', 'probe_of_pixels', 'rfid_digits']
    program = Program(config, create(config))
    _, state = sample.load(program, tmp_path, None)
    look = open_extractor('digits', batch_size=11)
    examples = {
        split: [source[i] for i in range(len(source))]
        for split in ('train', 'test')
        for source in [sources.open_source(config.data, split)]
    }
    z = {split: program.encode(state, program.given(x)) for split, x in examples.items()}
    back = to_uint8(program.decode(state, z['test']))
    real = np.stack([x['image'] for x in examples['test']])
    want = fid(*(Moments.of(look(images)['pool']) for images in (real, back)))
    row = rows['rfid_digits']
    assert row['value'] == pytest.approx(want, rel=1e-5)
    assert (row['n'], row['n_reference'], row['reference']) == (296, 296, 'digits test')
    labels = [np.array([x['label'] for x in examples[split]]) for split in ('train', 'test')]
    mean, deviation = z['train'].mean(0), z['train'].std(0)
    fitted = LogisticRegression(max_iter=1000).fit((z['train'] - mean) / deviation, labels[0])
    want = (fitted.predict((z['test'] - mean) / deviation) == labels[1]).mean()
    assert rows['probe']['value'] == pytest.approx(want, abs=2 / 296)
    assert rows['probe_of_pixels']['value'] > 0.93  # digits are told apart by a linear model
    assert rows['probe']['n_reference'] == 1501
    spread = [statistics.variance(map(float, unit)) for unit in z['test'].T]
    assert rows['active_units']['value'] == sum(x > 0.01 for x in spread)
    assert (rows['active_units']['of'], rows['active_units']['n']) == (2, 296)


def test_active_units_are_those_that_images_move():
    """Deviations 1, 0.2, 0.11, 0.09, 0: three of five have a variance above 0.01."""
    z = np.array([[1.0], [-1.0]] * 500) * np.array([1.0, 0.2, 0.11, 0.09, 0.0])
    config, sizes = default('autoencoders.vae'), set()

    def encode(state, part):
        sizes.add(len(part))
        return z[part]

    program = types.SimpleNamespace(config=config, given=lambda part: part, encode=encode)
    row = encoded.active_units(program, None, range(1_000))['active_units']
    assert (row['value'], row['of'], row['n']) == (3, 5, 1_000)
    assert sizes == {64}  # of the last batch too, so that one program serves


@pytest.mark.slow
def test_numbers_of_the_same_state_stay_and_others_go(trained):
    evaluate.run(small(**{'eval.metrics': ('fid',)}), trained)
    first = report(trained)
    evaluate.run(small(**{'eval.metrics': ('accuracy',)}), trained)
    both = report(trained)
    assert sorted(both) == ['accuracy_digits', 'fid_digits']
    assert both['fid_digits'] == first['fid_digits']
    evaluate.run(small(**{'eval.metrics': ('accuracy',)}), trained, step='3')
    assert list(report(trained)) == ['accuracy_digits']


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_goes_on_and_ends_the_same(trained, monkeypatch):
    evaluate.run(small(), trained)
    whole = report(trained)
    (out,) = (trained / 'samples').glob('at_step_*')
    parts = sorted(out.glob('part_*.npy'))
    assert len(parts) == 2
    parts[1].unlink()
    drawn, draw = [], Program.sample

    def spy(self, state, indices):
        drawn.append(len(indices))
        return draw(self, state, indices)

    monkeypatch.setattr(Program, 'sample', spy)
    evaluate.run(small(), trained)
    assert drawn == [300 - 256]
    assert report(trained) == whole


@pytest.mark.slow
def test_parts_of_any_length_and_of_a_killed_run_are_read(trained):
    config = small(**{'eval.metrics': ('fid',)})
    evaluate.run(config, trained)
    whole = report(trained)
    (out,) = (trained / 'samples').glob('at_step_*')
    images = np.concatenate([np.load(out / f'part_{x}.npy') for x in ('0_256', '256_300')])
    for part in out.glob('part_*'):
        part.unlink()
    np.save(out / 'part_5_50.npy', images[5:50])
    np.save(out / 'part_40_290.npy', images[40:290])
    (out / '.290_300.partial.npy').write_bytes(b'half')
    evaluate.run(config, trained)
    assert report(trained)['fid_digits']['value'] == whole['fid_digits']['value']
    assert not list(out.glob('.*'))


@pytest.mark.slow
def test_samples_of_another_training_are_not_judged(trained):
    evaluate.run(small(), trained)
    (out,) = (trained / 'samples').glob('at_step_*')
    settings = json.loads((out / 'settings.json').read_text())
    settings['state'] = 'of other weights'
    (out / 'settings.json').write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r'other settings \(state was'):
        evaluate.run(small(), trained)


@pytest.mark.slow
def test_saved_statistics_serve_as_the_reference(trained, tmp_path):
    evaluate.run(small(**{'eval.metrics': ('fid',)}), trained)
    value = report(trained)['fid_digits']['value']
    source = sources.open_source(small().data, 'train')
    real = np.concatenate(list(sources.images_of(source)))
    moments = Moments.of(open_extractor('digits')(real)['pool'])
    np.savez(tmp_path / 'real.npz', mu=moments.mu, sigma=moments.sigma)
    changes = {'eval.metrics': ('fid',), 'eval.reference': str(tmp_path / 'real.npz')}
    evaluate.run(small(**changes), trained)
    row = report(trained)['fid_digits']
    assert row['value'] == pytest.approx(value, rel=1e-9)
    assert row['reference']['path'] == str(tmp_path / 'real.npz')
    assert len(row['reference']['sha256']) == 64
    assert 'floor' not in row
    changes['eval.metrics'] = ('kid',)
    with pytest.raises(UserError, match='kid'):
        evaluate.run(small(**changes), trained)


@pytest.mark.slow
def test_training_evaluates_and_keeps_the_best(tmp_path):
    config = in_training(**{'eval.best': 'lowest fid_digits'})
    train.run(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    name = 'eval/fid_digits'
    found = {line['step']: line[name] for line in lines if name in line}
    assert sorted(found) == [2, 4, 6]
    best = json.loads((tmp_path / 'best.json').read_text())
    assert best['value'] == min(found.values())
    assert found[best['step']] == best['value']
    assert [p.name for p in (tmp_path / 'best').iterdir() if p.name.isdigit()] == [
        str(best['step'])
    ]
    for step, value in found.items():
        rows = json.loads((tmp_path / f'evaluations/step_{step:08d}.json').read_text())
        assert rows['fid_digits']['value'] == value
    # The kept state is the judged one.
    changes = {'eval.metrics': ('fid',), 'eval.n': 64}
    evaluate.run(small(**changes), tmp_path, step='best')
    row = report(tmp_path)['fid_digits']
    assert row['step'] == best['step']
    assert row['value'] == pytest.approx(best['value'], rel=1e-6)


@pytest.mark.slow
def test_numbers_of_a_training_that_is_gone_are_not_taken_for_those_of_the_next(tmp_path):
    metrics = {'eval.every_metrics': ('per_example',)}
    config = in_training(**{**metrics, 'eval.best': 'highest elbo'})
    train.run(config, tmp_path)
    shutil.rmtree(tmp_path / 'checkpoints')
    for left in ('evaluations', 'best.json'):
        with pytest.raises(UserError, match=f'{left} is of a training whose checkpoints are gone'):
            train.run(config, tmp_path)
        (tmp_path / left).rename(tmp_path / f'old_{left}')
    assert train.run(config, tmp_path) == 0


@pytest.mark.slow
def test_the_highest_may_be_the_best(tmp_path):
    metrics = {'eval.every_metrics': ('per_example',)}
    train.run(in_training(**{**metrics, 'eval.best': 'highest elbo'}), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    best = json.loads((tmp_path / 'best.json').read_text())
    assert best['value'] == max(line['eval/elbo'] for line in lines if 'eval/elbo' in line)


@pytest.mark.slow
def test_a_resumed_run_evaluates_like_one_that_never_stopped(tmp_path):
    best = {'eval.best': 'lowest fid_digits'}
    train.run(in_training(**best), tmp_path / 'whole')
    # Stopped after step 3, of which there is a checkpoint, and after having evaluated step 4.
    train.run(in_training(steps=4, **best), tmp_path / 'stopped')
    checkpoint = tmp_path / 'stopped/checkpoints/4'
    checkpoint.rename(tmp_path / 'stopped/checkpoints/lost')
    train.run(in_training(**best), tmp_path / 'stopped')
    for name in ('best.json', 'evaluations/step_00000004.json', 'evaluations/step_00000006.json'):
        assert (tmp_path / 'stopped' / name).read_text() == (tmp_path / 'whole' / name).read_text()
    numbers = []
    for run in ('whole', 'stopped'):
        lines = (tmp_path / run / 'metrics.jsonl').read_text().splitlines()
        lines = [json.loads(line) for line in lines]
        name = 'eval/fid_digits'
        numbers.append([(x['step'], x[name]) for x in lines if name in x])
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'eval.metrics': ('fidd',)}, "did you mean 'fid'"),
        ({'eval.metrics': ()}, 'name some of'),
        ({'eval.metrics': ('accuracy',), 'data.num_classes': 0}, 'num_classes'),
        ({'eval.metrics': ('modes',), 'eval.network': 'inception'}, 'digits or fashion_mnist'),
        ({'eval.metrics': ('sfid',)}, 'no spatial features'),
        ({'eval.network': 'digit'}, "did you mean 'digits'"),
        ({'eval.network': 'fashion_mnist'}, '28x28'),
        ({'data.image_size': 16}, '8x8 images'),
        ({'eval.metrics': ('fid', 'diversity')}, 'at least 11x11'),
        ({'eval.metrics': ('reconstruction',)}, 'at least 11x11'),
        ({'eval.metrics': (1, 2)}, 'no metric 1'),
        ({'eval.metrics': ('probe',)}, 'config.data.num_classes=0'),
        ({'eval.metrics': ('rfid',), 'data.image_size': 16}, '8x8 images'),
        ({'eval.resize': 'foo'}, 'eval.resize'),
        ({'eval.perceptual': 'foo'}, 'eval.perceptual'),
        ({'eval.dims': 100}, 'eval.dims'),
        ({'eval.metrics': ('path_length',), 'data.num_classes': 0}, "eval.perceptual to 'vgg'"),
        ({'eval.metrics': ('path_length',)}, 'has no latent_dim'),
        ({'eval.network': 'inception', 'eval.metrics': ('fid',), 'eval.resize': 'tf2'}, 'tf1'),
        ({'eval.reference': 'no_such.npz'}, 'no_such.npz does not exist'),
        ({'eval.reference': 'tset'}, "did you mean 'test'"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_one_line_and_beforehand(changes, says, monkeypatch):
    config = small(**changes)
    program = Program(config, create(config))
    images = [np.zeros((2, 8, 8, 1), np.uint8)] * 4

    def ask():
        judge.Judge(program, config.eval.metrics, 32)(0, None, iter(images))

    def opened(*_):
        raise AssertionError('told only after samples were drawn')

    monkeypatch.setattr(judge.compare, 'look', opened)
    with pytest.raises(UserError, match=says) as error:
        ask()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'eval.best': 'fid_digits'}, 'lowest NAME'),
        ({'eval.best': 'lowest fid_digit'}, "did you mean 'fid_digits'"),
        ({'eval.best': 'lowest fid_digits', 'eval.every': 0}, 'eval.every'),
        ({'eval.every_metrics': ()}, 'eval.every_metrics'),
        ({'eval.every_metrics': ('fidd',)}, r'config\.eval\.every_metrics: no metric'),
        ({'eval.every_metrics': ('is',), 'eval.every_n': 9}, r'out of config\.eval\.every_metrics'),
        ({'eval.every_n': 1}, 'eval.every_n'),
        (
            {'eval.metrics': ('fidd',)},
            r"config\.eval\.metrics: no metric 'fidd', did you mean 'fid'",
        ),
        ({'eval.network': 'zzz'}, r"config\.eval\.network='zzz' is unknown"),
    ],
)
def test_mistakes_in_evaluation_are_told_before_training(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        train.run(in_training(**changes), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_too_few_samples_are_told_beforehand():
    config = small(**{'eval.metrics': ('is',)})
    with pytest.raises(UserError, match="'is' needs at least 10 images, and samples are 9"):
        judge.Judge(Program(config, create(config)), config.eval.metrics, 9)


@pytest.mark.slow
def test_a_best_of_other_settings_is_not_compared(tmp_path):
    train.run(in_training(**{'eval.best': 'lowest fid_digits'}), tmp_path)
    shutil.rmtree(tmp_path / 'checkpoints/6')
    best = json.loads((tmp_path / 'best.json').read_text())
    # Whatever was best before says nothing of another metric, and must not stay in its place.
    changes = {'eval.every_metrics': ('per_example',), 'eval.best': 'lowest elbo', 'steps': 6}
    train.run(in_training(**changes), tmp_path)
    again = json.loads((tmp_path / 'best.json').read_text())
    assert again['asked'] == 'lowest elbo' != best['asked']
    (kept,) = [p.name for p in (tmp_path / 'best').iterdir() if p.name.isdigit()]
    assert kept == str(again['step'])


ROW = {'value': 1.0, 'n': 64, 'data': 'digits test', 'distance': 'LPIPS', 'heads_sha256': 'a'}


@pytest.mark.parametrize('other', ['n', 'data', 'distance', 'heads_sha256', 'settings', None])
def test_which_settings_two_numbers_must_share_to_be_compared(tmp_path, monkeypatch, other):
    config, kept = in_training(**{'eval.best': 'lowest fid_digits'}), []
    trials = evaluate.Trials(Program(config, create(config)), tmp_path)
    manager = types.SimpleNamespace(save=lambda step, *_: kept.append(step), close=lambda: None)
    monkeypatch.setattr(evaluate, 'Checkpoints', lambda folder, keep: manager)
    rows = {2: ROW, 4: {**ROW, 'value': 2.0, **({other: 'another'} if other else {})}}
    for step, row in rows.items():
        trials._keep_best(step, None, {}, row)
    assert kept == ([2, 4] if other else [2])


def test_a_likelihood_says_what_it_was_asked_with(small_network, monkeypatch):
    config = default('diffusion.continuous', network='small')
    program = Program(config, create(config))
    found = {'ode_bits_per_dim': np.zeros(config.batch_size, np.float32)}
    monkeypatch.setattr(Program, 'evaluate', lambda *_: found)
    (row,) = judge.per_example(program, None).values()
    assert row['settings']['likelihood']['tolerance'] == config.likelihood.tolerance
    assert row['settings']['sampler']['name'] == config.sampler.name


@pytest.mark.parametrize('weighed', [0, 7])
def test_a_weighed_bound_says_by_how_many(monkeypatch, weighed):
    config = default('autoencoders.vae')
    config.vae.weighed = weighed
    program = Program(config, create(config))
    found = {'iw_bound': np.zeros(config.batch_size, np.float32)}
    monkeypatch.setattr(Program, 'evaluate', lambda *_: found)
    (row,) = judge.per_example(program, None).values()
    assert row.get('settings') == ({'vae': {'weighed': 7}} if weighed else None)


def test_a_step_is_evaluated_once_all_that_is_asked_for_is_there(tmp_path):
    config = in_training(**{'eval.every_metrics': ('per_example', 'fid')})
    trials = evaluate.Trials(Program(config, create(config)), tmp_path)
    state = {'step': 2, 'seed': 0, 'ema': True}
    trials.record(2, {'fid_digits': {**state, 'value': 1.0}})
    assert trials.recorded(2) == {}
    names = trials._program.evaluated()
    trials.record(2, {name: {**state, 'value': 2.0} for name in names})
    assert trials.recorded(2).keys() == {'fid_digits', *names}


@pytest.mark.slow
def test_an_evaluation_that_fails_loses_no_step(tmp_path, monkeypatch):
    def broken(*_):
        raise UserError('broken')

    monkeypatch.setattr(judge.Judge, '__call__', broken)
    with pytest.raises(UserError, match='broken'):
        train.run(in_training(checkpoint_every=100), tmp_path)
    assert (tmp_path / 'checkpoints/2').is_dir()


@pytest.mark.slow
def test_the_last_step_is_evaluated_whatever_the_period(tmp_path):
    train.run(in_training(**{'steps': 3, 'eval.every': 100}), tmp_path)
    assert [p.name for p in (tmp_path / 'evaluations').iterdir()] == ['step_00000003.json']


@pytest.mark.slow
def test_a_missing_best_checkpoint_says_how_to_get_one(trained):
    with pytest.raises(UserError, match=r'train with config\.eval\.best'):
        evaluate.run(small(), trained, step='best')


def test_a_method_without_samples_says_so():
    config = default('metrics.features.classifier')
    config.data.num_classes = 10
    config.eval.metrics = ('fid',)
    with pytest.raises(UserError, match='has no sample_step'):
        judge.Judge(Program(config, create(config)), config.eval.metrics, 10)


def test_samples_of_one_class_are_held_against_that_class():
    real = small(**{'data.num_classes': 10, 'data.image_size': 16})
    source = sources.open_source(real.data, real.data.eval_split)
    ones = np.flatnonzero(sources.labels_of(source) == 1)
    fields = {'data.image_size': 16, 'model.width': 4, 'eval.metrics': ('diversity',)}
    config = default('gans.adversarial')
    config.update_from_flattened_dict(
        {**fields, 'data.fit': 'resize', 'data.num_classes': 10, 'model.condition': 'concat'}
    )
    found = {}
    for label in (-1, 1):
        config.sample.label = label
        program = Program(config, create(config))
        asked = judge.Judge(program, config.eval.metrics, 20)
        (found[label],) = asked._diversity(np.zeros((20, 16, 16, 1), np.uint8)).values()
    assert found[1]['real'] < 0.9 * found[-1]['real']
    assert found[1]['real_n'] == min(len(ones), judge.DIVERSE)
    assert found[1]['pairs'] == 20 * 19 // 2  # all there are


def test_in_training_too_it_is_the_settled_state_that_is_judged():
    told = []
    trials = evaluate.Trials.__new__(evaluate.Trials)
    trials._program = types.SimpleNamespace(settled=lambda state: f'{state}, settled')
    trials._judge = lambda step, state, images: told.append(state) or {}
    trials._samples = told.append
    trials._best = ''
    assert trials(3, 'as trained', {}) == {}
    assert told == ['as trained, settled'] * 2


def test_standing_statistics_are_told_with_their_batches():
    config = default('gans.adversarial')
    assert 'standing' not in judge.sampling(config)
    config.sample.standing = 3
    assert judge.sampling(config)['standing'] == {
        'batches': 3,
        'batch_size': config.batch_size,
        'accumulate': 1,
    }


def test_diversity_of_collapsed_samples_is_nought_and_warned_of(caplog):
    config = default('gans.adversarial')
    config.update_from_flattened_dict(
        {'data.image_size': 16, 'model.width': 4, 'eval.metrics': ('diversity',)}
    )
    asked = judge.Judge(Program(config, create(config)), config.eval.metrics, 20)
    one = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 1), np.uint8)
    rows = asked(0, None, iter([np.repeat(one, 20, 0)]))
    assert rows['diversity_ssim']['value'] == pytest.approx(0, abs=1e-6)
    assert rows['diversity_ssim']['real'] > 0.3
    assert rows['diversity_ssim']['ratio'] == pytest.approx(0, abs=1e-5)
    assert 'collapsed' in caplog.text
