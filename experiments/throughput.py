"""How fast the paper's CIFAR-10 U-Net is here, against diffusers' in the same run.

  python experiments/throughput.py

The same weights (through gen_jax.interop), shapes and number of network calls: the U-Net's forward
pass, DDIM sampling from noise to images, and a training step with dropout, clipping, Adam and the
moving average. diffusers' runs eagerly, with channels_last, compiled (torch.compile), and both;
the best of the four counts. They take turns; a ratio is of one turn's times, and only ratios say
anything off this machine. Then the peak memory of a training step, each in a process of its own: on
a CPU the largest resident size during a step, after two others, less that before the network was
made; on a GPU the most that was allocated there.

Both use a GPU where JAX finds one, at the same precision: float32 with TensorFloat-32 products,
or with --dtype=bfloat16 ours as its config says it, diffusers' by torch.autocast.

Needs the extra `parity`, and a C++ compiler for torch.compile. Writes a json and a table beside it.
"""

import copy
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import scripts
from absl import flags
from peers import import_torchvision, interleaved, ratios

from gen_jax.config import create
from gen_jax.diffusion import networks
from gen_jax.interop import diffusers_ddpm
from gen_jax.runtime import process, workdir
from gen_jax.runtime.compilation import compiler_options
from gen_jax.runtime.program import Program

FLAGS = flags.FLAGS
DECAY = 0.9999
SAME = ('batch_size', 'variant', 'steps', 'dtype')  # what a measurement of memory is told


def define_flags() -> None:
    """What is measured."""
    flags.DEFINE_integer('batch_size', 16, 'Images.', lower_bound=1)
    flags.DEFINE_integer('turns', 7, 'Measurements of each.', lower_bound=1)
    flags.DEFINE_integer('sampling_turns', 5, 'Measurements of sampling.', lower_bound=1)
    flags.DEFINE_integer('steps', 50, 'Network calls of sampling.', lower_bound=1)
    flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of the computation.')
    flags.DEFINE_bool('compile', True, 'Whether torch.compile takes part.')
    flags.DEFINE_string('variant', 'ddim', 'Variant of configs/ddpm_cifar10.py.')
    flags.DEFINE_string('out', 'throughput.json', 'Where the figures go; the table goes beside it.')
    flags.DEFINE_string('memory_of', '', 'Prints a peak, and ends: gen_jax, or a diffusers folder.')


def program() -> Program:
    """ddpm_cifar10, with DDIM, at the flags' sizes."""
    sys.path.insert(0, str(scripts.ROOT))
    from configs import ddpm_cifar10

    config = ddpm_cifar10.get_config(FLAGS.variant)
    config.batch_size = config.sample.batch_size = FLAGS.batch_size
    config.sampler.name, config.sample.knobs.steps = 'ddim', FLAGS.steps
    config.sampler.spacing, config.ema_decay = 'linear', DECAY
    config.model.dtype = FLAGS.dtype
    if jax.default_backend() == 'cpu':
        config.model.remat = 'norms'  # as one would there: docs/performance.md
    return Program(config, create(config))


def batch(size: int) -> np.ndarray:
    """Random images, float32 [b, size, size, 3] in [-1, 1]."""
    shape = (FLAGS.batch_size, size, size, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


class Ours:
    """The three tasks, here."""

    def __init__(self):
        self.program = program()
        config = self.program.config
        self.images = batch(config.data.image_size)
        self.state = self.program.init()
        self.unet = networks.build(config)
        self.times = np.full(FLAGS.batch_size, 500)
        label = np.zeros(FLAGS.batch_size, np.int32)
        self.batch = self.program.to_global({'image': self.images, 'label': label})
        options = compiler_options(self.program.mesh)
        self._forward = jax.jit(
            lambda params, x, t: self.unet.apply({'params': params}, x, t), compiler_options=options
        )

    def forward(self) -> np.ndarray:
        """[b, h, w, 3]."""
        return np.asarray(self._forward(self.state.net.params, self.images, self.times))

    def sample(self) -> np.ndarray:
        """uint8 [b, h, w, 3]."""
        return self.program.sampled(self.state, np.arange(FLAGS.batch_size))[0]

    def train(self) -> None:
        """One step."""
        self.state, _ = self.program.train_step(0, self.state, self.batch)
        jax.block_until_ready(self.state)


class Theirs:
    """The three tasks, in diffusers."""

    def __init__(self, model, images: np.ndarray, times: np.ndarray, last: bool, compiled: bool):
        import torch
        from diffusers import DDIMScheduler

        layout = torch.channels_last if last else torch.contiguous_format
        self.torch, self.device = torch, 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
        if self.device == 'cuda':
            torch.set_float32_matmul_precision('high')  # XLA's default there
            torch.backends.cudnn.benchmark = True
        self.model = copy.deepcopy(model).to(self.device, memory_format=layout)
        images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(self.device)
        self.images = images.contiguous(memory_format=layout)
        self.times = torch.from_numpy(times).to(self.device)
        self.compiled = torch.compile(self.model) if compiled else self.model
        self.scheduler = DDIMScheduler(clip_sample=False)
        self.trainer = None

    def call(self, x, t):
        """What the network says, [b, 3, h, w], float32."""
        half = FLAGS.dtype == 'bfloat16'
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=half):
            return self.compiled(x, t).sample.float()

    def forward(self) -> np.ndarray:
        """[b, h, w, 3]."""
        self.model.eval()
        with self.torch.no_grad():
            return self.call(self.images, self.times).cpu().numpy().transpose(0, 2, 3, 1)

    def sample(self) -> np.ndarray:
        """uint8 [b, h, w, 3]."""
        self.model.eval()
        self.scheduler.set_timesteps(FLAGS.steps)
        x = self.torch.randn_like(self.images)
        with self.torch.no_grad():
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(self.call(x, t), t, x).prev_sample
        x = (x.clamp(-1, 1) + 1) * 127.5
        return x.round().to(self.torch.uint8).cpu().numpy().transpose(0, 2, 3, 1)

    def train(self) -> None:
        """One step, with torch's fused Adam and diffusers' own moving average."""
        from diffusers.training_utils import EMAModel

        torch, parameters = self.torch, list(self.model.parameters())
        self.model.train()
        if self.trainer is None:
            adam = torch.optim.Adam(parameters, lr=2e-4, fused=True)
            ema = EMAModel(parameters, decay=DECAY, min_decay=DECAY, foreach=True)
            self.trainer = adam, ema
        adam, ema = self.trainer
        t = torch.randint(0, 1000, (len(self.images),), device=self.device)
        eps = torch.randn_like(self.images)
        signal = self.scheduler.alphas_cumprod.to(self.device)[t].sqrt()[:, None, None, None]
        x_t = signal * self.images + (1 - signal**2).sqrt() * eps
        loss = ((self.call(x_t, t) - eps) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        ema.step(parameters)
        if self.device == 'cuda':
            torch.cuda.synchronize()


def save(ours: Ours, folder: str) -> None:
    """Our network, as diffusers reads it."""
    params = jax.device_get(ours.state.net.params)
    diffusers_ddpm.save_unet(ours.unet, params, ours.program.config.data.image_size, folder)


def load(folder: str, images: np.ndarray, ways: dict[str, tuple]) -> dict[str, Theirs]:
    """The network in diffusers, in several ways to run it: {name: (channels_last, compiled)}."""
    from diffusers import UNet2DModel

    model = UNet2DModel.from_pretrained(folder)
    times = np.full(len(images), 500)
    return {name: Theirs(model, images, times, *way) for name, way in ways.items()}


def compared(name: str, functions: dict[str, Callable], turns: int, each: int) -> dict:
    """A task's images/s, and ours over theirs."""
    times = interleaved(functions, turns)
    found = ratios(times, 'gen_jax')
    best = min(found, key=lambda way: found[way]['ratio'])
    rates = {way: each / statistics.median(taken) for way, taken in times.items()}
    for way, row in found.items():
        print(f'{name}: {row["ratio"]:.2f} ({row["least"]:.2f} to {row["greatest"]:.2f}) of {way}')
    return {'images_per_second': rates, 'over': found, 'best': best}


def print_memory() -> None:
    """What a training step of --memory_of adds to this process."""
    import_torchvision()
    import diffusers.training_utils  # noqa: F401

    before = process.resident('VmRSS')
    if FLAGS.memory_of == 'gen_jax':
        who = Ours()
    else:
        images = batch(program().config.data.image_size)
        (who,) = load(FLAGS.memory_of, images, {'eager': (False, False)}).values()
    for _ in range(2):
        who.train()
    if jax.default_backend() == 'cpu':
        Path('/proc/self/clear_refs').write_text('5')  # the most so far is now
        who.train()
        print(process.resident('VmHWM') - before)
    elif FLAGS.memory_of == 'gen_jax':
        print(jax.devices()[0].memory_stats()['peak_bytes_in_use'])
    else:
        print(who.torch.cuda.max_memory_allocated())


def memory(folder: str) -> dict:
    """What both add, each in a process of its own; ours compiles (cold), then reads it (warm)."""
    found = {}
    for name, who in (('cold', 'gen_jax'), ('warm', 'gen_jax'), ('diffusers', folder)):
        command = [sys.executable, __file__, f'--memory_of={who}']
        command += [f'--{flag}={FLAGS[flag].value}' for flag in SAME]
        where = scripts.compiled_in(Path(folder, 'compiled'))
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=where)
        found[f'{name}_bytes'] = int(done.stdout.split()[-1])
    for name in ('cold', 'warm'):
        found[name] = found[f'{name}_bytes'] / found['diffusers_bytes']
        print(f'peak memory of a training step, {name}: {found[name]:.2f} of eager')
    return found


def table(found: dict) -> str:
    """Markdown."""
    lines = ['| task | best of diffusers | gen_jax over it | over eager |', '|---|---|---|---|']
    for name in ('forward', 'sampling', 'training'):
        row = found[name]
        best, eager = row['over'][row['best']], row['over']['eager']
        text = [
            f'{x["ratio"]:.2f} ({x["least"]:.2f} to {x["greatest"]:.2f})' for x in (best, eager)
        ]
        lines.append(f'| {name} | {row["best"]} | {text[0]} | {text[1]} |')
    for name, after in (('cold', 'compiling'), ('warm', 'a warm start')):
        share = found['memory'][name]
        lines.append(f'| peak memory of training, after {after} | | | {share:.2f} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Measures, prints, writes."""
    out = scripts.file(FLAGS.out)
    warnings.filterwarnings('ignore')
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # torch needs of a GPU's memory too
    if FLAGS.memory_of:
        print_memory()
        return
    ours = Ours()
    ways = {'eager': (False, False), 'channels_last': (True, False)}
    if FLAGS.compile:
        ways |= {'compile': (False, True), 'compile, channels_last': (True, True)}
    import_torchvision()
    with tempfile.TemporaryDirectory() as folder:
        save(ours, folder)
        found = {'memory': memory(folder)}
        theirs = load(folder, ours.images, ways)
    mine = ours.forward()
    scale = np.abs(mine).max()
    found['largest_difference_of_scale'] = {
        name: float(np.abs(other.forward() - mine).max() / scale) for name, other in theirs.items()
    }
    for task, method, turns in (
        ('forward', 'forward', FLAGS.turns),
        ('sampling', 'sample', FLAGS.sampling_turns),
        ('training', 'train', FLAGS.turns),
    ):
        everybody = {'gen_jax': ours, **theirs}
        functions = {name: getattr(who, method) for name, who in everybody.items()}
        found[task] = compared(task, functions, turns, FLAGS.batch_size)
    workdir.write_json(out, found)
    scripts.write(out, table(found))


if __name__ == '__main__':
    scripts.start(define_flags, main)
