"""What is counted, against counts by hand and XLA's; what is measured, against itself."""

import importlib.util
import json
import math
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from gen_jax import benchmark, inspect
from gen_jax.benchmark import Chain
from gen_jax.config import create, default
from gen_jax.errors import UserError
from gen_jax.method import Method
from gen_jax.nn.conv import conv3x3, kernel_gradient
from gen_jax.runtime.operations import flops
from gen_jax.runtime.program import Program

ROOT = Path(__file__).parents[1]


def load(name, variant=''):
    spec = importlib.util.spec_from_file_location(name, ROOT / f'configs/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def made(config, **changes):
    config.update_from_flattened_dict(changes)
    return Program(config, create(config))


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def count(f, *args):
    return flops(jax.make_jaxpr(f)(*args))


def conv(x, w, strides=(1, 1), padding='SAME', **options):
    dimensions = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=dimensions, **options
    )


# Operations by hand: two for each multiplication.

X, W = zeros(8, 16), zeros(16, 4)
DENSE = 2 * 8 * 16 * 4
IMAGES, KERNEL = zeros(2, 8, 8, 5), zeros(3, 3, 5, 7)


def scores(q, k):
    return jnp.einsum('bqhd,bkhd->bhqk', q, k)


def unpadded(x, w):
    return conv(x, w, padding='VALID')


def downsampled(x, w):
    return conv(x, w, (2, 2), [(0, 1), (0, 1)])


def grouped(x, w):
    return conv(x, w, padding='VALID', feature_group_count=2)


def transposed(x, w):
    return conv(x, w, (1, 1), [(1, 1), (1, 1)], lhs_dilation=(2, 2))


@pytest.mark.parametrize(
    ('f', 'args', 'expected'),
    [
        (jnp.matmul, (X, W), DENSE),
        (lambda x, w: jnp.sin(x) + 1, (X, W), 0),
        (jnp.matmul, (zeros(3, 5, 8, 16), zeros(3, 5, 16, 4)), 15 * DENSE),
        (scores, (zeros(2, 7, 3, 4), zeros(2, 7, 3, 4)), 2 * 2 * 3 * 4 * 7**2),
        # All nine products at each of 6x6 places.
        (unpadded, (IMAGES, KERNEL), 2 * 2 * 36 * 9 * 35),
        # With zeros around, each axis has 8 * 3 - 2 products of which none is with them.
        (conv, (IMAGES, KERNEL), 2 * 2 * 22**2 * 35),
        # At every second pixel, with zeros at one end only: 4 * 3 - 1 of an axis.
        (downsampled, (IMAGES, KERNEL), 2 * 2 * 11**2 * 35),
        # Each of 2 groups knows its own 3 of the inputs.
        (grouped, (zeros(2, 8, 8, 6), zeros(3, 3, 3, 4)), 2 * 2 * 36 * 9 * 3 * 4),
        # Each of 4x4 pixels meets all of the kernel; no zero in between counts.
        (transposed, (zeros(1, 4, 4, 3), zeros(2, 2, 3, 5)), 2 * 16 * 4 * 15),
    ],
)
def test_products_and_convolutions(f, args, expected):
    assert count(f, *args) == expected


def many(x, w):
    return jax.lax.scan(lambda x, _: (x @ w @ w.T, None), x, length=5)[0]


def inner_and_outer(x, w):
    return jax.lax.fori_loop(0, 3, lambda i, x: many(x, w), x)


def until(x, w):
    return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w @ w.T, x)


def either(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w.T @ w)


@jax.custom_vjp
def own_gradient(x, w):
    return x @ w


own_gradient.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))


def by_platform(x, w):
    return jax.lax.platform_dependent(
        x, w, cpu=lambda x, w: x @ w @ w.T @ w, default=lambda x, w: x @ w
    )


@pytest.mark.parametrize(
    ('f', 'times'),
    [
        (jax.jit(jnp.matmul), 1),
        (many, 10),
        (inner_and_outer, 30),
        (until, 2),  # who knows how often
        (either, 3),
        (by_platform, 1),
        (own_gradient, 1),
        (jax.grad(lambda x, w: (x @ w).sum() ** 2, argnums=(0, 1)), 3),
        (jax.grad(lambda x, w: own_gradient(x, w).sum() ** 2, argnums=(0, 1)), 3),
        (jax.grad(lambda x, w: own_gradient(x, w).sum() ** 2, argnums=1), 2),
        # The sum of squares needs the product once more than the sum.
        (jax.grad(jax.checkpoint(lambda x, w: jnp.sin(x @ w).sum()), argnums=(0, 1)), 3),
        (lambda x, w: (x @ w, x @ w)[0], 1),
    ],
)
def test_loops_branches_and_gradients(f, times):
    assert count(f, X, W) == times * DENSE


def test_a_convolution_counts_the_same_in_whatever_way_it_is_computed():
    x, w, g = zeros(2, 9, 9, 32), zeros(3, 3, 32, 48), zeros(2, 9, 9, 48)
    plain = count(conv, x, w)
    assert plain == 2 * 2 * 25**2 * 32 * 48
    assert count(conv3x3, x, w) == plain
    assert count(kernel_gradient, x, g) == plain
    for f in (conv, conv3x3):
        gradients = jax.grad(lambda x, w, f=f: (f(x, w) ** 2).sum(), argnums=(0, 1))
        assert count(gradients, x, w) == 3 * plain


@pytest.mark.parametrize('strides', [(1, 1), (2, 2)])
def test_gradients_of_convolutions_as_xla_counts_them(strides):
    x, w = zeros(2, 8, 8, 5), zeros(4, 4, 5, 7)
    f = jax.grad(lambda x, w: (conv(x, w, strides) ** 2).sum(), argnums=(0, 1))
    by_xla = jax.jit(f).lower(x, w).cost_analysis()['flops']
    # XLA counts additions and squares of the result besides.
    assert 0 <= by_xla - count(f, x, w) < 10 * 2 * 8 * 8 * 7


def unet_flops(size, widths, blocks, attention, channels):
    """One image through the U-Net of Ho et al. 2020, layer by layer."""
    first, total = widths[0], 0

    def conv3(s, c, o):
        return 2 * (3 * s - 2) ** 2 * c * o

    def dense(c, o, places=1):
        return 2 * c * o * places

    def res(s, c, o):
        shortcut = dense(c, o, s * s) if c != o else 0
        return conv3(s, c, o) + dense(4 * first, o) + conv3(s, o, o) + shortcut

    def attend(s, c):
        # Queries, keys, values, out; then scores and sums over all pairs of pixels.
        return 4 * dense(c, c, s * s) + 2 * 2 * s**4 * c

    total = dense(first, 4 * first) + dense(4 * first, 4 * first) + conv3(size, channels, first)
    s, c, skips = size, first, [first]
    for i, width in enumerate(widths):
        for _ in range(blocks):
            total += res(s, c, width) + (attend(s, width) if s in attention else 0)
            c = width
            skips.append(c)
        if i < len(widths) - 1:
            s //= 2
            total += 2 * (3 * s - 1) ** 2 * c * c
            skips.append(c)
    total += 2 * res(s, c, c) + attend(s, c)
    for i, width in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            total += res(s, c + skips.pop(), width) + (attend(s, width) if s in attention else 0)
            c = width
        if i:
            s *= 2
            total += conv3(s, c, c)
    return total + conv3(size, c, channels)


@pytest.mark.slow
def test_the_unet_of_the_paper_by_hand():
    program = made(load('ddpm_cifar10'), **{'batch_size': 2, 'sample.batch_size': 3})
    an_image = unet_flops(32, (128, 256, 256, 256), 2, (16,), 3)
    assert an_image / 1e9 == pytest.approx(11.6, abs=0.05)
    assert benchmark.part_flops(program, 'network_call') == 3 * an_image
    assert benchmark.part_flops(program, 'sample_step') == 1000 * 3 * an_image
    # Two gradients; but nobody needs that of the images and of the sines.
    spared = 2 * 94**2 * 3 * 128 + 2 * 128 * 512
    assert benchmark.part_flops(program, 'train_step') == 2 * (3 * an_image - spared)


def small(**changes):
    """A diffusion model that compiles soon."""
    level = {'model.channels': 8, 'model.multipliers': (1,), 'model.attention': ()}
    few = {'batch_size': 8, 'sample.batch_size': 4, 'sample.knobs.steps': 2}
    config = default('diffusion.gaussian')
    config.update_from_flattened_dict({**level, **few, 'model.dropout': 0.0, **changes})
    return config


def training_flops(**changes):
    return benchmark.part_flops(made(small(**changes)), 'train_step')


@pytest.mark.slow
def test_parts_and_recomputed_norms_cost_no_product():
    plain = training_flops(**{'model.remat': 'none'})
    assert training_flops(**{'model.remat': 'none', 'accumulate': 4}) == plain
    # Once more: q, k and v, what they weigh, and what is attended to, of 8 images of 8 channels.
    pixels = small().data.image_size ** 2
    attention = 2 * 8 * (3 * pixels * 8 * 8 + 2 * pixels * pixels * 8)
    norms = training_flops(**{'model.remat': 'norms'})
    assert norms == plain + attention
    assert training_flops(**{'model.remat': 'blocks'}) > norms


class Grown(struct.PyTreeNode):
    step: jax.Array


def growing():
    """A method whose step multiplies 4x4 matrices, and 8x8 ones from step 2 on."""

    def train_step(key, state, batch, stage=8):
        x = jnp.full((stage, stage), state.step + 1.0)
        return state.replace(step=state.step + 1), {'loss': (x @ x).sum()}

    return Method(
        lambda key, batch: Grown(jnp.int32(0)), train_step, stage=lambda step: 4 if step < 2 else 8
    )


@pytest.mark.parametrize(('steps', 'size'), [(2, 4), (3, 8)])
def test_what_grows_is_counted_timed_and_lowered_as_in_its_last_step(steps, size):
    config = default('gans.adversarial')
    config.steps = steps
    program = Program(config, growing())
    assert benchmark.part_flops(program, 'train_step') == 2 * size**3
    assert f'{size}x{size}xf32' in program.lower_train().as_text()
    train, state = benchmark._call(program, 'train_step', {}, program.init())
    assert state.step == steps - 1
    assert train(state).step == steps


@pytest.mark.parametrize('parts', [1, 4])
def test_inspect_counts_every_part_of_a_batch(tmp_path, capsys, parts):
    config = default('autoencoders.autoencoder')
    config.update_from_flattened_dict({'accumulate': parts, 'batch_size': 8})
    inspect.run(config, tmp_path)
    told = capsys.readouterr().out.split('train_step: ')[1]
    config.accumulate = 1
    whole = Program(config, create(config)).flops()
    assert told == f'{whole:.4g} FLOPs in products and convolutions for a batch of 8\n'


def test_guidance_costs_two_images():
    known = {'data.num_classes': 10}
    costs = [
        benchmark.part_flops(made(small(**known, **changes)), 'network_call')
        for changes in ({}, {'diffusion.label_dropout': 0.1})
    ]
    assert costs[1] == 2 * costs[0]


# Clocks.


class Clock:
    """Time that passes in calls only."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def perf_counter(self):
        return self.now

    def chain(self, seconds):
        def call(carry):
            self.now += seconds
            self.calls.append(carry)
            return carry + 1

        return Chain(call, 0, flops=10)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(benchmark, 'time', Clock())
    return benchmark.time


def test_a_chain_hands_its_result_on_and_takes_the_mean(clock):
    chain = clock.chain(0.5)
    assert chain.run(5) == 0.5
    assert (clock.calls, chain.carry) == ([0, 1, 2, 3, 4], 5)


@pytest.mark.parametrize(
    ('seconds', 'calls', 'repeats'),
    [
        (0.25, 8, 3),  # short: several calls make a repeat of 2 seconds
        (0.75, 3, 3),
        (1.75, 2, 2),  # long: only two repeats fit into 9 seconds
        (4.0, 1, 2),
        (20.0, 1, 1),  # at least one
    ],
)
def test_how_often_a_call_is_repeated(monkeypatch, clock, seconds, calls, repeats):
    for name, value in (('LEAST', 2.0), ('BUDGET', 9.0), ('REPEATS', 3)):
        monkeypatch.setattr(benchmark, name, value)
    chain = clock.chain(seconds)
    chain.warm_up()
    assert (len(clock.calls), chain.calls, chain.repeats) == (2, calls, repeats)
    benchmark.interleave([chain])
    assert chain.seconds == [seconds] * repeats
    assert len(clock.calls) == 2 + repeats * calls


def test_a_repeat_has_as_many_lazy_terms_as_training(monkeypatch, clock):
    monkeypatch.setattr(benchmark, 'LEAST', 2.0)
    chain = clock.chain(0.75)
    chain.period = 4
    chain.warm_up()
    assert chain.calls == 4
    config = default('gans.adversarial', network='mlp')
    lazy = {'gan.penalty': 'r1', 'gan.penalty_every': 4, 'steps': 8}
    always, without = {'gan.penalty': 'r1'}, {}
    lazily, each, never = (
        made(config.copy_and_resolve_references(), **x) for x in (lazy, always, without)
    )
    assert each.flops() > 1.1 * never.flops()
    mean = (each.flops() + 3 * never.flops()) / 4
    assert benchmark.part_flops(lazily, 'train_step') == pytest.approx(mean, rel=1e-12)


def test_chains_take_turns(monkeypatch):
    monkeypatch.setattr(benchmark, 'REPEATS', 3)
    turns = []
    chains = [Chain(lambda _, name=name: turns.append(name), None, 1) for name in 'ab']
    for chain, repeats in zip(chains, (3, 1), strict=True):
        chain.calls, chain.repeats = 1, repeats
    benchmark.interleave(chains)
    assert ''.join(turns) == 'abaa'


def test_figures_of_repeats():
    part = {'batch_size': 4, 'flops': 80}
    found = benchmark._timings(part, [4.0, 1.0, 2.0, 3.0, 0.0], {'matmul': 50.0})
    assert found == {
        'seconds': {'median': 2, 'p25': 1, 'p75': 3, 'repeats': 5},
        'images_per_second': 2,
        'flops_per_image': 20,
        'flops_per_second': 40,
        'share_of_peak': {'matmul': 0.8},
    }


class Timed:
    """A chain whose calls take as long as one says."""

    def __init__(self, seconds):
        self._seconds = seconds

    def run(self, calls):
        return calls * self._seconds


@pytest.mark.slow
def test_sampling_that_takes_for_ever_is_left_out():
    program = made(load('ddpm_cifar10'), **{'batch_size': 1, 'sample.batch_size': 1})
    (short, long) = ({'network_call': Timed(seconds)} for seconds in (0.5, 1.2))
    assert benchmark._excessive(program, 'sample_step', short) == ''
    why = benchmark._excessive(program, 'sample_step', long)
    assert why.startswith('1000 network calls would take 20 minutes: lower config.sample')
    assert benchmark._excessive(program, 'train_step', long) == ''


# Compiling, and memory.


@pytest.mark.slow
def test_the_cache_is_empty_then_filled_and_all_is_as_before(tmp_path):
    names = (
        'jax_enable_compilation_cache',
        'jax_compilation_cache_dir',
        'jax_persistent_cache_min_compile_time_secs',
        'jax_persistent_cache_min_entry_size_bytes',
    )
    before = [getattr(jax.config, name) for name in names]
    folder = tmp_path / 'cache'
    folder.mkdir()
    (folder / 'left by a run that was killed').touch()
    found, lowered = [], []

    def lower():
        found.append(len(list(folder.glob('jit_*-cache'))))
        lowered.append(jax.jit(lambda x: jnp.sin(x) @ x).lower(zeros(4, 4)))
        return lowered[-1]

    with benchmark.empty_cache(folder):
        compiled, seconds = benchmark.compiled_twice(lower)
        kept = sorted(path.name for path in folder.iterdir())
    assert found == [0, 1]
    assert len(lowered) == 2
    assert not any('killed' in name for name in kept)
    assert set(seconds) == {'cold', 'warm'}
    assert min(seconds.values()) > 0
    x = np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(compiled(x), np.sin(x) @ x)
    assert [getattr(jax.config, name) for name in names] == before
    assert not folder.exists()


def test_memory_that_was_given_back_is_forgotten():
    def peak(size):
        since = benchmark.forget_peak_memory()
        np.ones(size, np.uint8)
        return benchmark.peak_memory(since)

    large, small = peak(2**28), peak(1)
    assert large['of'] == small['of'] == 'process'
    if small['since'] == 'start':
        pytest.skip('this system does not let a process forget its peak')
    assert large['bytes'] - small['bytes'] == pytest.approx(2**28, rel=0.1)


# All of it.


@pytest.fixture
def quick(monkeypatch):
    """Repeats so few, and peaks so small, that a test can wait for them."""
    for name, value in (('LEAST', 0.01), ('REPEATS', 3), ('SIZES', {'cpu': (128, 1, 8)})):
        monkeypatch.setattr(benchmark, name, value)


def check(report, parts):
    """Finite positive numbers that fit each other."""
    assert list(report['parts']) == parts
    for name, part in report['parts'].items():
        seconds = part['seconds']
        assert 0 < seconds['p25'] <= seconds['median'] <= seconds['p75']
        assert part['images_per_second'] == pytest.approx(part['batch_size'] / seconds['median'])
        rate = part['images_per_second'] * part['flops_per_image']
        assert part['flops_per_second'] == pytest.approx(rate)
        assert part['flops_per_image'] * part['batch_size'] == pytest.approx(part['flops'])
        for peak, share in part['share_of_peak'].items():
            assert share == pytest.approx(rate / report['peaks'][peak]['flops_per_second'])
        assert set(part['share_of_peak']) == {'matmul', 'convolution'}
        numbers = [*part['compile_seconds'].values(), part['memory']['total'], part['flops']]
        numbers += [part['compiled_flops'], part['peak_memory']['bytes'], seconds['repeats']]
        assert all(math.isfinite(x) and x > 0 for x in numbers), name


@pytest.mark.slow
def test_a_benchmark_of_diffusion(quick, tmp_path, capsys):
    benchmark.run(small(), tmp_path)
    report = json.loads((tmp_path / 'benchmark.json').read_text())
    check(report, ['train_step', 'network_call', 'sample_step'])
    assert report['left_out'] == {}
    train, call, sample = report['parts'].values()
    assert (train['batch_size'], call['batch_size'], sample['batch_size']) == (8, 4, 4)
    assert report['network_calls'] == 2
    assert sample['flops'] == 2 * call['flops']
    assert report['config']['model.channels'] == 8
    assert (report['devices'], report['processes'], report['dtype']) == (1, 1, 'float32')
    assert report['jax'] == jax.__version__
    assert [path.name for path in tmp_path.iterdir()] == ['benchmark.json']
    told = capsys.readouterr().out
    for words in ('images/s', 'share of matmul peak', 'compiling, cold, s', 'of the process'):
        assert words in told


@pytest.mark.slow
def test_a_benchmark_of_a_gan_beside_a_run(quick, tmp_path):
    (tmp_path / 'config.json').write_text('{"method": "of another run"}')
    benchmark.run(load('dcgan_fashion_mnist', 'tiny'), tmp_path)
    report = json.loads((tmp_path / 'benchmark.json').read_text())
    check(report, ['train_step', 'sample_step'])
    assert 'has no denoise' in report['left_out']['network_call']
    assert report['network_calls'] == 1
    assert (tmp_path / 'config.json').read_text() == '{"method": "of another run"}'


@pytest.mark.slow
def test_a_method_that_draws_nothing_is_timed_in_training(quick, tmp_path, capsys):
    config = load('classifier_digits', 'tiny')
    config.model.dtype = 'bfloat16'
    benchmark.run(config, tmp_path)
    report = json.loads((tmp_path / 'benchmark.json').read_text())
    check(report, ['train_step'])
    assert report['dtype'] == 'bfloat16'
    assert 'sample_step is not timed: ' in capsys.readouterr().out
    assert 'draws no samples' in report['left_out']['sample_step']


def test_a_folder_that_cannot_be_written_is_one_line():
    config = default('autoencoders.vae')
    with pytest.raises(UserError, match='cannot write to /proc/nowhere') as told:
        benchmark.run(config, Path('/proc/nowhere'))
    assert '\n' not in str(told.value)


@pytest.mark.slow
def test_eight_devices(main, tmp_path):
    flags = '--config.mesh.fsdp=2', '--config.mesh.tensor=2', '--config.accumulate=2'
    digits = f'--config={ROOT}/configs/ddpm_digits.py:tiny'
    flags += '--mode=benchmark', f'--workdir={tmp_path}'
    done = main(digits, *flags, devices=8)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / 'benchmark.json').read_text())
    check(report, ['train_step', 'network_call', 'sample_step'])
    assert report['devices'] == 8
    assert report['mesh'] == {'data': 2, 'fsdp': 2, 'tensor': 2}
    assert '8 devices as data=2 x fsdp=2 x tensor=2' in done.stdout


@pytest.mark.slow
def test_two_processes_of_which_one_speaks(main, tmp_path):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    flags = f'--coordinator=localhost:{port}', '--processes=2', f'--workdir={tmp_path}'
    vae = f'--config={ROOT}/configs/vae_fashion_mnist.py:tiny'
    flags += '--mode=benchmark', vae
    pair = [main(*flags, f'--process={i}', wait=False) for i in range(2)]
    told = [process.communicate(timeout=240) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], told
    report = json.loads((tmp_path / 'benchmark.json').read_text())
    check(report, ['train_step', 'sample_step'])
    assert (report['devices'], report['processes']) == (2, 2)
    assert 'images/s' in told[0][0]
    assert 'images/s' not in told[1][0]
    assert [path.name for path in tmp_path.iterdir()] == ['benchmark.json']
