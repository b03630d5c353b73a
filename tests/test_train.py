"""The loop, run in this process on a network that compiles in seconds."""

import json
import shutil
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen_jax import evaluate, inspect, sample, train
from gen_jax.config import default
from gen_jax.diffusion import networks
from gen_jax.errors import UserError
from gen_jax.interop import diffusers_ddpm
from gen_jax.method import Method
from gen_jax.runtime import workdir, writer
from gen_jax.runtime.program import Program

FEW = {
    'steps': 6,
    'batch_size': 8,
    'log_every': 2,
    'sample_every': 3,
    'checkpoint_every': 3,
    'sample.n': 5,
    'sample.batch_size': 4,
    'sample.grid': 4,
}


def small(**changes):
    """An autoencoder of a few thousand parameters on the digits."""
    config = default('autoencoders.vae')
    nets = {'model.channels': 4, 'model.latent_dim': 2}
    config.update_from_flattened_dict({**FEW, **nets, **changes})
    return config


def diffusion():
    """A diffusion model with the fixture `small_network`'s network."""
    config = default('diffusion.gaussian', network='small')
    config.update_from_flattened_dict(FEW | {'sample.knobs.steps': 2})
    return config


def game():
    """A small DCGAN of the digits."""
    config = default('gans.adversarial')
    data = {'data.image_size': 16, 'data.fit': 'resize'}
    config.update_from_flattened_dict(FEW | data | {'model.width': 4, 'model.latent_dim': 8})
    return config


def fingerprint(capsys):
    return capsys.readouterr().out.split('fingerprint ')[1].split()[0]


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(tmp_path, capsys):
    train.run(small(), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [2, 3, 4, 6]
    assert all(np.isfinite(row['loss']) for row in rows)
    pictures = sorted(path.name for path in (tmp_path / 'samples').iterdir())
    assert pictures == sorted(
        f'{name}_{step:08d}.png'
        for name in ('step', 'reconstruction', 'interpolation')
        for step in (3, 6)
    )
    assert json.loads((tmp_path / 'config.json').read_text())['batch_size'] == 8
    assert len(fingerprint(capsys)) == 64


@pytest.mark.slow
def test_resumed_equals_uninterrupted(tmp_path, capsys):
    train.run(small(), tmp_path / 'whole')
    whole = fingerprint(capsys)
    # 3 steps, then the rest; and once more when nothing is left to do.
    train.run(small(steps=3), tmp_path / 'parts')
    assert fingerprint(capsys) != whole
    train.run(small(), tmp_path / 'parts')
    assert fingerprint(capsys) == whole
    assert train.run(small(), tmp_path / 'parts', stopped=143) == 0
    assert fingerprint(capsys) == whole
    assert train.run(small(steps=3), tmp_path / 'parts', stopped=143) == 0  # it has more
    assert fingerprint(capsys) == whole
    inspect.run(small(), tmp_path / 'parts')
    assert fingerprint(capsys) == whole


@pytest.mark.slow
def test_a_run_does_not_go_on_among_other_examples(tmp_path):
    data, run = tmp_path / 'data', tmp_path / 'run'
    data.mkdir()
    for i in range(10):
        Image.new('L', (8, 8), 20 * i).save(data / f'{i}.png')
    fields = {'data.source': f'folder:{data}', 'data.eval_split': 'train', 'sample_every': 0}
    train.run(small(**fields, steps=3), run)
    shutil.copy(data / '0.png', data / '10.png')
    with pytest.raises(UserError, match='had 10 examples when this run was saved, and has 11'):
        train.run(small(**fields), run)
    (data / '10.png').unlink()
    train.run(small(**fields), run)
    assert (run / 'checkpoints' / '6').exists()


class Bare(train.Loop):
    """A loop that computes nothing, and tells in `did` when it would have saved and drawn."""

    def __init__(self, folder, broken=False, **changes):
        method = Method(None, None, sample_step=True)
        self.program = SimpleNamespace(config=small(**changes), method=method)
        self.folder, self.broken, self.did = folder, broken, []
        self.batches = SimpleNamespace(get_state=dict)
        self.trials = SimpleNamespace(recorded=lambda step: True, due=lambda step: False)
        self.checkpoints = SimpleNamespace(
            save=lambda step, *_: self.did.append(('save', step)), wait=lambda: None
        )

    def step(self, step, state):
        return state

    def log(self, step):
        pass

    def draw(self, step, state):
        if self.broken:
            raise UserError('broken')
        self.did.append(('draw', step))

    def go(self, start, stop=10):
        self.steps(start, None, SimpleNamespace(requested=lambda step: step == stop))
        return self.did


def test_a_picture_that_fails_loses_no_step(tmp_path):
    run = Bare(tmp_path, broken=True)
    with pytest.raises(UserError, match='broken'):
        run.go(0)
    assert run.did == [('save', 3)]


def test_pictures_that_a_run_was_stopped_before_are_drawn_by_the_next(tmp_path):
    wanted = {'sample_every': 2, 'checkpoint_every': 10}
    assert Bare(tmp_path, **wanted).go(0, stop=4) == [('draw', 2), ('save', 4)]
    assert Bare(tmp_path, **wanted).go(4)[0] == ('draw', 4)
    (tmp_path / 'samples').mkdir()
    (tmp_path / 'samples/step_00000004.png').touch()
    assert Bare(tmp_path, **wanted).go(4)[0] == ('save', 6)


def test_an_evaluation_is_recorded_first_and_logged_by_a_name_of_its_own(tmp_path):
    """And found once its checkpoint is on disk: without one the next start would be refused."""
    path, recorded, waited = tmp_path / 'metrics.jsonl', [], []

    class Trials:
        def __call__(self, *_):
            assert waited
            return {'elbo': {'value': 1.0}}

        def due(self, step):
            return True

        def record(self, step, rows):
            recorded.append(step)
            assert not path.read_text()

    run = Bare(tmp_path)
    run.trials, run.since = Trials(), 0.0
    run.checkpoints.wait = lambda: waited.append(True)
    run.writers = writer.Writers([writer.JsonlWriter(path, 0)])
    run.evaluate(2, None)
    run.writers.close()
    assert recorded == [2]
    assert json.loads(path.read_text()) == {'step': 2, 'eval/elbo': 1.0}


def test_what_is_not_finite_is_told_and_training_goes_on(tmp_path, caplog):
    """Every second image; the grid is drawn, and no number of such images is kept."""

    def sample(keys, state, condition):
        lost = jnp.arange(len(keys)) % 2 == 1
        return jnp.where(lost[:, None, None, None], jnp.nan, jnp.ones((len(keys), 8, 8, 1)))

    config = small(**{'eval.every': 2, 'eval.every_metrics': ('fid',), 'eval.network': 'digits'})
    method = Method(lambda key, batch: jnp.zeros(()), None, sample)
    run = train.Loop(program := Program(config, method), tmp_path, SimpleNamespace(get_state=dict))
    lines = writer.JsonlWriter(tmp_path / 'metrics.jsonl', 0)
    run.writers, run.since = writer.Writers([lines]), 0.0
    run.checkpoints = SimpleNamespace(wait=lambda: None)
    run.draw(2, program.init())
    run.evaluate(2, program.init())
    lines.close()
    says = 'images hold values that are not finite'
    assert [x.message.split(': try')[0] for x in caplog.records] == [
        f'step 2: 2 of 4 {says}',
        f'step 2: 2 of 4 {says}',
    ]
    page = np.asarray(Image.open(tmp_path / 'samples/step_00000002.png'))
    np.testing.assert_array_equal(page[[4, 4, 40, 40], [4, 40, 4, 40]], [255, 0, 255, 0])
    assert not (tmp_path / 'evaluations').exists()
    assert not (tmp_path / 'metrics.jsonl').read_text()


@pytest.mark.slow
def test_the_seed_changes_the_run(tmp_path, capsys):
    train.run(small(), tmp_path / 'a')
    first = fingerprint(capsys)
    train.run(small(seed=1), tmp_path / 'b')
    assert fingerprint(capsys) != first


@pytest.mark.slow
def test_how_often_one_logs_draws_and_saves_changes_nothing(tmp_path, capsys):
    train.run(small(), tmp_path / 'a')
    first = fingerprint(capsys)
    train.run(small(log_every=5, sample_every=0, checkpoint_every=4, keep=1), tmp_path / 'b')
    assert fingerprint(capsys) == first


@pytest.mark.slow
def test_a_number_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path, capsys):
    train.run(small(steps=3), tmp_path)
    good = fingerprint(capsys)
    state_at_3 = small(steps=40, checkpoint_every=1, keep=10)
    config = json.loads((tmp_path / 'config.json').read_text())
    # The same run with a step size that no network survives.
    state_at_3.optimizer.learning_rate = 1e30
    config['optimizer.learning_rate'] = 1e30
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match=r'is (nan|inf) at step \d+: the checkpoints') as error:
        train.run(state_at_3, tmp_path)
    bad = int(str(error.value).split('at step ')[1].split(':')[0])
    steps = [int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]
    assert max(steps) < bad
    inspect.run(state_at_3, tmp_path, step='3')
    assert fingerprint(capsys) == good


@pytest.mark.slow
@pytest.mark.usefixtures('small_network')
@pytest.mark.parametrize(
    ('config', 'others'), [(small, ['encode', 'init']), (diffusion, ['init']), (game, ['init'])]
)
def test_a_run_compiles_each_of_its_programs_once_and_moves_nothing_unasked(
    config, others, tmp_path
):
    lowered = []

    def listen(event, seconds, fun_name=None, **_):
        if event.endswith('jaxpr_to_mlir_module_duration'):
            lowered.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with jax.transfer_guard('disallow'):
            train.run(config(), tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(list((tmp_path / 'checkpoints').iterdir())) == 2
    # Two grids were drawn, and every program that looks at a state was needed at both.
    ours = [name for name in lowered if name.startswith('jit(_')]
    assert sorted(ours) == ['jit(_sample_step)', 'jit(_train_step)']
    assert [lowered.count(f'jit({name})') for name in others] == [1] * len(others)


@pytest.mark.slow
def test_another_config_in_the_workdir_is_refused_and_nothing_is_harmed(tmp_path):
    train.run(small(steps=3), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    with pytest.raises(UserError, match=r'config\.seed was 0, is 1') as error:
        train.run(small(seed=1), tmp_path)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match=r'config\.model\.channels was 4, is 8'):
        train.run(small(**{'model.channels': 8}), tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}


@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch_size_and_are_completed(tmp_path, capsys):
    train.run(small(steps=3), tmp_path)
    sample.run(small(steps=3), tmp_path)
    out = tmp_path / 'samples' / 'at_step_00000003_seed_0'
    first = {path.name: np.asarray(Image.open(path)) for path in out.glob('*.png')}
    assert sorted(first) == [f'{i:06d}.png' for i in range(5)]
    (out / '000001.png').unlink()
    (out / '000003.png').unlink()
    kept = (out / '000000.png').stat().st_mtime_ns
    sample.run(small(**{'steps': 3, 'sample.batch_size': 2}), tmp_path)
    for name, image in first.items():
        again = np.asarray(Image.open(out / name))
        # Float sums of another batch size may round the other way.
        assert np.abs(again.astype(int) - image).max() <= 1
    assert (out / '000000.png').stat().st_mtime_ns == kept
    assert any((first['000000.png'] != image).any() for image in first.values())


@pytest.mark.slow
def test_npz_samples_are_one_file(tmp_path):
    config = small(**{'steps': 3, 'sample.format': 'npz', 'data.num_classes': 10})
    train.run(config, tmp_path)
    sample.run(config, tmp_path)
    out = tmp_path / 'samples' / 'at_step_00000003_seed_0'
    assert sorted(p.name for p in out.iterdir()) == ['samples.npz', 'settings.json']
    with np.load(out / 'samples.npz') as made:
        assert made['images'].shape == (5, 8, 8, 1)
        assert made['images'].dtype == np.uint8
        assert made['label'].tolist() == [0, 1, 2, 3, 4]
    made_at = (out / 'samples.npz').stat().st_mtime_ns
    sample.run(config, tmp_path)
    assert (out / 'samples.npz').stat().st_mtime_ns == made_at


@pytest.mark.slow
def test_samples_of_other_settings_are_not_mixed(tmp_path):
    train.run(small(steps=3), tmp_path)
    sample.run(small(steps=3), tmp_path)
    sample.run(small(steps=3, seed=1), tmp_path)  # another seed has a folder of its own
    assert len(list((tmp_path / 'samples').glob('at_step_*'))) == 2
    with pytest.raises(UserError, match='other settings'):
        sample.run(small(**{'steps': 3, 'sample.knobs.temperature': 0.5}), tmp_path)


@pytest.mark.slow
def test_evaluate_counts_every_example_once(tmp_path):
    config = small(steps=3)
    train.run(config, tmp_path)
    evaluate.run(config, tmp_path)
    report = json.loads((tmp_path / 'metrics.json').read_text())
    assert report['elbo']['n'] == 296  # batches of 50 do not divide it
    assert report['elbo']['step'] == 3
    # Another batch size gives the same number.
    config.batch_size = 50
    evaluate.run(config, tmp_path)
    again = json.loads((tmp_path / 'metrics.json').read_text())
    assert again['elbo']['value'] == pytest.approx(report['elbo']['value'], rel=1e-5)


@pytest.mark.slow
def test_a_stop_after_the_last_step_leaves_its_numbers_to_the_next_run(tmp_path, monkeypatch):
    changes = {'eval.every': 2, 'eval.every_metrics': ('per_example',), 'steps': 3}
    with monkeypatch.context() as patch:
        patch.setattr(train.Interruption, 'requested', lambda self, step: step == 3)
        assert train.run(small(**changes), tmp_path, stopped=143) == 143
    last = tmp_path / 'evaluations' / 'step_00000003.json'
    assert not last.exists()
    assert train.run(small(**changes), tmp_path, stopped=143) == 0
    assert last.exists()


@pytest.mark.slow
def test_steps_per_second_leaves_drawing_out(tmp_path, monkeypatch):
    draw, drawn = Program.sampled, []

    def slowly(*args):
        drawn.append(time.sleep(2))
        return draw(*args)

    monkeypatch.setattr(Program, 'sampled', slowly)
    train.run(small(steps=40, log_every=20, sample_every=30, checkpoint_every=100), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    # With the two seconds of drawing counted, 20 steps would be at most 10 a second.
    assert rows[-1]['steps_per_second'] > 10
    assert drawn


def test_a_missing_eval_split_is_told_before_anything_is_written(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        Image.new('L', (8, 8)).save(tmp_path / 'data' / name / '0.png')
    config = small(**{'data.source': f'folder:{tmp_path}/data'})
    with pytest.raises(UserError, match='eval_split'):
        train.run(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_weights_can_only_be_imported_where_they_fit(tmp_path):
    with pytest.raises(UserError, match=r"init_from='x' is for diffusion\.gaussian"):
        train.run(small(init_from='x'), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.fixture
def published(tmp_path):
    """A config, and two folders of weights for it."""
    config = default('diffusion.gaussian')
    config.update_from_flattened_dict(
        {
            'steps': 1,
            'batch_size': 4,
            'sample_every': 0,
            'model.channels': 8,
            'sample.knobs.steps': 2,
            'sample.n': 2,
            'sample.batch_size': 2,
            'sample.grid': 2,
        }
    )
    unet = networks.build(config)
    for seed in (0, 1):
        x = np.zeros((1, 8, 8, 1), np.float32)
        params = unet.init(jax.random.key(seed), x, np.zeros(1))['params']
        params = jax.tree.map(lambda x: x + 0.05, params)
        diffusers_ddpm.save_unet(unet, params, 8, str(tmp_path / f'weights_{seed}'))
    return config, [str(tmp_path / f'weights_{seed}') for seed in (0, 1)]


@pytest.mark.slow
def test_published_weights_are_sampled_without_training(tmp_path, published):
    config, (config.init_from, other) = published
    sample.run(config, tmp_path / 'run')
    assert len(list((tmp_path / 'run').glob('samples/at_step_00000000_seed_0/*.png'))) == 2
    config.init_from = other
    with pytest.raises(UserError, match='init_from was'):
        sample.run(config, tmp_path / 'run')


@pytest.mark.slow
def test_what_began_with_published_weights_goes_on_without_their_file(tmp_path, published):
    config, (config.init_from, other) = published
    first, run = config.init_from, tmp_path / 'run'
    train.run(config, run)
    shutil.rmtree(first)
    config.steps = 2
    train.run(config, run)
    # A state of training is not that of other files, nor is it said to be.
    for asked, mode in ((other, train), ('', train), (other, sample), (other, evaluate)):
        config.init_from = asked
        with pytest.raises(UserError, match=rf"config\.init_from was '{first}', is '{asked}'"):
            mode.run(config, run)
    for config.init_from in (first, ''):
        sample.run(config, run)
    assert json.loads((run / 'config.json').read_text())['init_from'] == first


@pytest.mark.slow
def test_a_trained_state_is_not_said_to_be_a_published_one(tmp_path, published):
    config, (weights, _) = published
    train.run(config, tmp_path)
    config.init_from = weights
    with pytest.raises(UserError, match=r"init_from was '', is "):
        sample.run(config, tmp_path)


def test_no_second_run_writes_where_one_does(tmp_path):
    config = small(init_from='')
    with workdir.claimed(config, tmp_path):
        config.steps += 1
        with pytest.raises(UserError, match=f'another run is writing to {tmp_path}: wait'):
            train.run(config, tmp_path)
        assert json.loads((tmp_path / 'config.json').read_text())['steps'] == config.steps - 1
    with workdir.claimed(config, tmp_path):
        pass


def test_without_a_checkpoint_one_line_says_to_train(tmp_path):
    for mode in (sample, evaluate):
        with pytest.raises(UserError, match='train first'):
            mode.run(small(), tmp_path)
