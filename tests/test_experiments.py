"""The studies, on configs of seconds."""

import importlib
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import gan_throughput
import pytest
import readme
import start
import throughput

from gen_jax.config import create
from gen_jax.errors import UserError
from gen_jax.metrics.features import classifier

ROOT = Path(__file__).parents[1]
DIGITS = f'--config={ROOT}/configs/ddpm_digits.py:tiny'


def ended(name, *args):
    command = [sys.executable, str(ROOT / 'experiments' / name), *args]
    where = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=where)


def study(name, *args):
    done = ended(name, *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_classifier_is_shipped_with_the_accuracy_of_its_run(main, tmp_path):
    config = f'--config={ROOT}/configs/classifier_digits.py:tiny'
    assert main(config, f'--workdir={tmp_path}').returncode == 0
    file = tmp_path / 'mine.safetensors'
    study('ship_classifier.py', config, f'--workdir={tmp_path}', f'--out={file}')
    assert main(config, f'--workdir={tmp_path}', '--mode=evaluate').returncode == 0
    accuracy = json.loads((tmp_path / 'metrics.json').read_text())['accuracy']['value']
    assert classifier.load(str(file))[2]['accuracy'] == pytest.approx(accuracy)


@pytest.mark.slow
def test_a_start_is_measured_cold_and_warm(monkeypatch, capsys):
    monkeypatch.setattr(start, 'WARM', 1)
    monkeypatch.setattr(sys, 'argv', ['start.py', DIGITS])
    start.main()
    out = capsys.readouterr().out
    found = [float(x) for x in re.findall(r'(?:cold|warm) ([\d.]+) s', out)]
    (cold, warm), (cold_done, warm_done) = found[:2], found[2:]
    # As printed, with one digit after the point.
    assert 0 < warm < cold <= cold_done
    assert warm <= warm_done < cold_done


@pytest.mark.slow
def test_throughput_compares_the_same_network(tmp_path):
    pytest.importorskip('diffusers')
    out = tmp_path / 'throughput.json'
    few = ('--turns=1', '--sampling_turns=1', '--steps=2', '--batch_size=2')
    study('throughput.py', '--variant=tiny', '--nocompile', *few, f'--out={out}')
    found = json.loads(out.read_text())
    assert set(found['largest_difference_of_scale']) == {'eager', 'channels_last'}
    assert max(found['largest_difference_of_scale'].values()) < 1e-4
    for task in ('forward', 'sampling', 'training'):
        assert all(row['ratio'] > 0 for row in found[task]['over'].values())
    assert 0 < found['memory']['warm_bytes'] < 1.5 * found['memory']['cold_bytes']
    assert '| training |' in out.with_suffix('.md').read_text()


# --- without the heavy part ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ('command', 'told'),
    [
        ('ship_classifier.py', '--workdir'),
        (f'ship_classifier.py {DIGITS} --workdir=x', 'expected metrics.features.classifier'),
        ('ship_classifier.py --config=none.py --workdir=x', 'none.py'),
        ('throughput.py --variant=nope', "unknown variant 'nope'"),
        ('throughput.py --turns=0', '--turns=0'),
        ('throughput.py --out=none/file', 'a file in a folder that is there'),
        (
            'gan_throughput.py --reference=none --out=x.md',
            '--out=x.md: expected the file of figures',
        ),
        ('gan_throughput.py', '--reference'),
        ('gan_throughput.py --reference=none', 'expected the checkout none/'),
        ('metrics_speed.py --n=0', '--n=0'),
        ('readme.py --throughput=none', '--throughput=none: expected the table'),
        ('plan_scaling.py --out=none', '--out=none: expected a page'),
        ('plan_scaling.py --studies=foo', 'known are relative, fsdp, weak, configs'),
        ('tabular.py --rows=VAE', "'rows'"),
    ],
)
def test_bad_input_ends_in_one_line(command, told):
    name, *args = command.split()
    if name == 'metrics_speed.py':
        pytest.importorskip('torch')
    done = ended(name, *args)
    assert done.returncode == 2
    assert done.stderr.startswith(f'{name}: ')
    assert done.stderr.count('\n') == 1
    assert told in done.stderr


@pytest.mark.slow
def test_flags_are_listed():
    out = study('tabular.py', '--help')
    assert 'A VAE of a table' in out
    assert '--latent_dim: Numbers of z.' in out
    assert '--rows: ' in study('anomaly.py', '--help')


def test_a_process_that_says_much_is_no_standstill(monkeypatch, tmp_path, capsys):
    """More than a pipe holds, on its way to an error."""
    main = tmp_path / 'main.py'
    main.write_text('import sys\nsys.stderr.write("x" * 1_000_000)\nsys.exit(3)\n')
    monkeypatch.setattr(start, 'MAIN', main)
    with pytest.raises(SystemExit) as ended:
        start.start([], tmp_path)
    assert ended.value.code == 3
    assert len(capsys.readouterr().err) == 1_000_000


def test_a_start_that_trains_nothing_says_so(monkeypatch, tmp_path, capsys):
    (tmp_path / 'main.py').write_text('')
    monkeypatch.setattr(start, 'MAIN', tmp_path / 'main.py')
    with pytest.raises(SystemExit, match='has not trained: leave --mode out'):
        start.start(['--mode=inspect'], tmp_path)
    monkeypatch.setattr(sys, 'argv', ['start.py', '--help'])
    start.main()
    assert 'How long a run takes' in capsys.readouterr().out


def test_a_start_is_cold_whatever_folder_jax_was_told_of(monkeypatch, tmp_path):
    main, told = tmp_path / 'main.py', tmp_path / 'told'
    main.write_text(
        'import json, os, pathlib, sys\n'
        'told = {name: value for name, value in os.environ.items() if "CACHE" in name}\n'
        f'pathlib.Path({str(told)!r}).write_text(json.dumps(told))\n'
        'folder = sys.argv[-1].removeprefix("--workdir=")\n'
        'pathlib.Path(folder, "metrics.jsonl").write_text(2 * \'{"steps_per_second": 1.0}\\n\')\n'
    )
    monkeypatch.setattr(start, 'MAIN', main)
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'full'))
    monkeypatch.setenv('JAX_ENABLE_COMPILATION_CACHE', '0')
    monkeypatch.setenv('XDG_CACHE_HOME', 'kept')
    start.start([], tmp_path / 'empty')
    found = json.loads(told.read_text())
    assert found['GEN_JAX_CACHE'] == str(tmp_path / 'empty')
    assert found['XDG_CACHE_HOME'] == 'kept'
    assert not {'JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE'} & set(found)


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(map(json.dumps, rows)))


FID = {'value': 1.234, 'n': 1000, 'floor_n': 296, 'floor': 0.9}
LIKE = {'fid_x': FID, 'precision_x': {'value': 0.9}, 'recall_x': {'value': 0.85}}
NEAR = 'fid_x 1.23 of 1,000 samples (296 real test images: 0.90), precision 0.90, recall 0.85'


def test_rows_of_the_readme_are_what_runs_left(monkeypatch, tmp_path):
    monkeypatch.setattr(readme, 'FLAGS', types.SimpleNamespace(machine='one GPU'))
    log = tmp_path / 'metrics.jsonl'
    write(
        log,
        {'step': 100, 'steps_per_second': 10.0, 'd_real_accuracy': 0.5, 'd_fake_accuracy': 0.7},
        {'step': 100, 'eval/fid_x': 3.0},
        {'step': 400, 'steps_per_second': 5.0, 'd_real_accuracy': 0.9, 'd_fake_accuracy': 0.9}
        | {'perplexity': 12.3},
    )
    assert readme.minutes(tmp_path) == '400 steps, 1.2 min on one GPU'  # 10 s and 60 s
    right = {'value': 0.955, 'per_class': {'0': 0.99, '1': 0.8}, 'floor': 0.98}
    write(tmp_path / 'metrics.json', {**LIKE, 'accuracy_x': right})
    named = '95.5% recognised as the class asked for, 80% in the worst class'
    assert readme.conditional(tmp_path) == f'{NEAR}; {named} (real test images: 98.0%)'
    bits = {'value': 3.1, 'standard_error': 0.02, 'n': 100}
    write(tmp_path / 'metrics.json', {**LIKE, 'ode_bits_per_dim': bits})
    ode = '3.100 ± 0.020 bits per dimension by the probability-flow ODE (100 images)'
    assert readme.diffusion(tmp_path) == f'{NEAR}; {ode}'
    modes = {'n': 1000, 'counts': [900, 100, 0], 'found': 2, 'modes': 3}
    write(tmp_path / 'metrics.json', {**LIKE, 'modes_x': modes, 'diversity_ssim': {'ratio': 0.5}})
    text = readme.adversarial(tmp_path)
    assert f'{NEAR}; 2 of 3 classes, with shares of 0.0% to 90.0%; SSIM diversity 0.50' in text
    assert 'right on 60%, 60%, 90%, 90% of images' in text
    told = {
        'elbo': {'value': -250.04, 'standard_error': 1.25, 'n': 10},
        'reconstruction_psnr': {'value': 20.0},
        'reconstruction_ssim': {'value': 0.75},
        'rfid_x': {'value': 7.5},
        'probe': {'value': 0.8},
        'probe_of_pixels': {'value': 0.75},
        'active_units': {'value': 3, 'of': 4},
    }
    write(tmp_path / 'metrics.json', told)
    assert readme.autoencoder(tmp_path) == (
        'test ELBO -250.0 ± 1.2 nats (10); reconstructions PSNR 20.0 dB, SSIM 0.750, rFID 7.50; '
        'a linear probe of latents 80.0% (of pixels 75.0%); 3 of 4 units active; '
        'perplexity of codes 12'
    )


def test_the_readme_is_filled_from_the_runs_that_are_there(monkeypatch, tmp_path):
    one, two, three = (readme.command(x) for x in ('one', 'one:b', 'two'))
    page = tmp_path / 'README.md'
    page.write_text(f'| {one} | old |\n| {three} | old |\n\n| task | best of x |\n| old |\n\nend\n')
    for name in ('one', 'one_b', 'two'):
        run = tmp_path / 'runs' / name
        write(run / 'metrics.jsonl', {'step': 60, 'steps_per_second': 1.0})
        if name == 'two':
            continue  # was not evaluated
        write(run / 'metrics.json', {})
        for kind, says in (('step_000010', 'old'), ('step_000060', name), ('other', 'no')):
            write(run / 'samples' / f'{kind}.png', says)
        write(run / 'explore' / 'map_60.png', name)
    write(tmp_path / 'runs/one_b/samples/grid_000060.png', 'asked for')
    table = tmp_path / 'table.md'
    table.write_text('| task | best of y |\n')
    flags = {'runs': str(tmp_path / 'runs'), 'machine': '2 CPU cores', 'throughput': str(table)}
    monkeypatch.setattr(readme, 'FLAGS', types.SimpleNamespace(**flags))
    monkeypatch.setattr(readme, 'README', page)
    monkeypatch.setattr(readme, 'PICTURES', tmp_path / 'pictures')
    rows = [(name, lambda run: f'of {run.name}', 'none') for name in ('one', 'one:b', 'two')]
    monkeypatch.setattr(readme, 'ROWS', rows)
    took = '60 steps, 1.0 min on 2 CPU cores | none'
    for _ in range(2):
        readme.main()
        assert page.read_text() == (
            f'| {one} | {took} | of one |\n| {two} | {took} | of one_b |\n| {three} | old |\n\n'
            '| task | best of y |\n\nend\n'
        )
    found = {x.stem: json.loads(x.read_text()) for x in (tmp_path / 'pictures').iterdir()}
    assert found == {
        'one_samples': 'one',
        'one_b_samples': 'asked for',
        'one_map': 'one',
        'one_b_map': 'one_b',
    }


def test_every_row_of_the_readme_is_of_a_config():
    for name, *_ in readme.ROWS:
        file, _, variant = name.partition(':')
        assert importlib.import_module(f'configs.{file}').get_config(variant).steps > 0


RATIO = {'ratio': 1.5, 'least': 1.25, 'greatest': 2.0}


def test_tables_of_throughput():
    rows = {'biggan_cifar10': {'over': {'eager': RATIO, 'channels_last': {**RATIO, 'ratio': 1.75}}}}
    assert gan_throughput.table(rows).splitlines()[2] == (
        '| biggan_cifar10 | 1.50 (1.25 to 2.00) | 1.75 (1.25 to 2.00) |'
    )
    task = {'best': 'compile', 'over': {'compile': RATIO, 'eager': {**RATIO, 'ratio': 1.9}}}
    found = {**dict.fromkeys(('forward', 'sampling', 'training'), task)}
    found['memory'] = {'cold': 0.9, 'warm': 0.6}
    lines = throughput.table(found).splitlines()
    assert lines[3] == '| sampling | compile | 1.50 (1.25 to 2.00) | 1.90 (1.25 to 2.00) |'
    assert lines[5].endswith('| 0.90 |')
    assert lines[6].endswith('| 0.60 |')


def test_gans_are_compared_with_checkouts_that_are_there(monkeypatch, tmp_path):
    flags = types.SimpleNamespace(reference=str(tmp_path), batch_size=6)
    monkeypatch.setattr(gan_throughput, 'FLAGS', flags)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    (tmp_path / 'stylegan3').mkdir()
    assert gan_throughput.checkout('stylegan2_cifar10') == tmp_path / 'stylegan3'
    with pytest.raises(UserError, match=r'expected the checkout .*PyTorch-StudioGAN/src in it'):
        gan_throughput.checkout('biggan_cifar10')
    for name in gan_throughput.PEERS:
        config = gan_throughput.config_of(name)
        assert (config.batch_size, config.gan.n_critic) == (6, 1)
        create(config)


@pytest.mark.filterwarnings('ignore:The `disp` argument:DeprecationWarning')
def test_distances_are_timed_turn_by_turn(monkeypatch):
    pytest.importorskip('pytorch_fid')
    metrics_speed = pytest.importorskip('metrics_speed')
    seen = []

    def interleaved(functions, turns):
        seen.append([function() for function in functions.values()])
        assert turns == 3
        return dict(zip(functions, ([1, 2, 9], [4, 2, 9]), strict=True))

    monkeypatch.setattr(metrics_speed, 'interleaved', interleaved)
    monkeypatch.setattr(metrics_speed, 'RANKS', {'full_rank': 50, 'deficient': 4})
    monkeypatch.setattr(metrics_speed, 'FLAGS', types.SimpleNamespace(turns=3))
    found = metrics_speed.distances(size=8)
    assert list(found) == ['full_rank', 'deficient']
    for row in found.values():
        assert row == {
            'gen_jax_seconds': 2,
            'pytorch_fid_seconds': 4,
            'ratio': 1,
            'least': 1,
            'greatest': 4,
        }
    for ours, theirs in seen:
        assert ours == pytest.approx(theirs, rel=1e-3)
