"""How fast GANs train here, against the authors' networks in PyTorch in the same run.

  python experiments/gan_throughput.py --reference=FOLDER

FOLDER has checkouts of github.com/NVlabs/stylegan3 (`stylegan3`, at c233a919) and of
github.com/POSTECH-CVLab/PyTorch-StudioGAN (`PyTorch-StudioGAN`, at 947b35e). A turn is so many
training steps, each of both players on one batch, with Adam and the moving average: 4 of
configs/biggan_cifar10.py, and 16 of configs/stylegan2_cifar10.py, the first of them with R1. Both
sides have networks of the same size, which is checked, and random images. They take turns; a ratio
is of one turn's times, and only ratios say anything off this machine. PyTorch runs eagerly, as the
authors train, and with channels_last.

Ours does one thing more: it runs the averaged generator of BigGAN once, for its statistics.

Needs the extra `parity`. Writes a json and a table beside it.
"""

import contextlib
import copy
import statistics
import sys
import types
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import scripts
from absl import flags
from packaging import version
from peers import interleaved, ratios

from gen_jax.config import create
from gen_jax.errors import UserError
from gen_jax.runtime import workdir
from gen_jax.runtime.program import Program

FLAGS = flags.FLAGS
CLASSES = 10
STEPS = {'biggan_cifar10': 4, 'stylegan2_cifar10': 16}
CHECKOUTS = {'biggan_cifar10': 'PyTorch-StudioGAN/src', 'stylegan2_cifar10': 'stylegan3'}


def define_flags() -> None:
    """What is measured."""
    flags.DEFINE_string('reference', None, 'The folder of both checkouts.', required=True)
    flags.DEFINE_integer('batch_size', 16, 'Images.', lower_bound=4)
    flags.DEFINE_integer('turns', 5, 'Measurements of each.', lower_bound=1)
    flags.DEFINE_string('out', 'gan_throughput.json', 'Where the figures go; the table beside it.')


def config_of(name: str):
    """A config's, with one step of the discriminator for one of the generator."""
    sys.path.insert(0, str(scripts.ROOT))
    config = getattr(__import__(f'configs.{name}'), name).get_config()
    config.gan.n_critic = 1
    config.batch_size = FLAGS.batch_size
    config.sample.batch_size = FLAGS.batch_size
    if 'mbstd_group' in config.model:
        config.model.mbstd_group = FLAGS.batch_size
    return config


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [b, 32, 32, 3] in [-1, 1] and labels int32 [b]."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (FLAGS.batch_size, 32, 32, 3)).astype(np.float32)
    return images, (np.arange(FLAGS.batch_size) % CLASSES).astype(np.int32)


class Ours:
    """Training steps, here."""

    def __init__(self, config):
        self.program, self.step = Program(config, create(config)), 0
        self.state = self.program.init()
        image, label = batch()
        self.batch = self.program.to_global({'image': image, 'label': label})
        nets = self.state.generator, self.state.discriminator
        self.sizes = [sum(x.size for x in jax.tree.leaves(net.params)) for net in nets]

    def turn(self, steps: int) -> None:
        """So many steps."""
        for _ in range(steps):
            self.state, _ = self.program.train_step(self.step, self.state, self.batch)
            self.step += 1
        jax.block_until_ready(self.state)


class Theirs:
    """Training steps of two modules: generate(z, label) and judge(images, label) -> logits."""

    def __init__(self, config, generator, discriminator, losses: tuple[Callable, Callable], last):
        import torch

        self.torch, self.config, self.step = torch, config, 0
        layout = torch.channels_last if last else torch.contiguous_format
        self.generator = copy.deepcopy(generator).to(memory_format=layout).train()
        self.discriminator = copy.deepcopy(discriminator).to(memory_format=layout).train()
        self.average = copy.deepcopy(self.generator)
        self.d_loss, self.g_loss = losses
        options = config.optimizer
        betas, rate = (options.b1, options.b2), options.learning_rate
        adam = {'lr': rate, 'betas': betas, 'eps': options.eps}
        self.g_adam = torch.optim.Adam(self.generator.parameters(), **adam)
        adam['lr'] *= config.gan.d_rate_ratio
        self.d_adam = torch.optim.Adam(self.discriminator.parameters(), **adam)
        image, label = batch()
        image = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
        self.image = image.contiguous(memory_format=layout)
        self.label = torch.from_numpy(label).long()
        self.sizes = [
            sum(x.numel() for x in net.parameters()) for net in (generator, discriminator)
        ]

    def turn(self, steps: int) -> None:
        """So many steps."""
        for _ in range(steps):
            self._step()
            self.step += 1

    def _generate(self):
        z = self.torch.randn(len(self.image), self.config.model.latent_dim)
        return self.generator(z, self.label)

    def _step(self) -> None:
        torch, rules = self.torch, self.config.gan
        if rules.penalty and self.step % rules.penalty_every == 0:
            image = self.image.detach().requires_grad_(True)
            logits = self.discriminator(image, self.label)
            (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
            penalty = rules.penalty_weight / 2 * gradient.square().sum((1, 2, 3)).mean()
            self._descend(self.d_adam, rules.penalty_every * penalty)
        with torch.no_grad():
            made = self._generate()
        on_real, on_made = (self.discriminator(x, self.label) for x in (self.image, made))
        self._descend(self.d_adam, self.d_loss(on_real, on_made))
        self.discriminator.requires_grad_(False)
        logits = self.discriminator(self._generate(), self.label)
        self._descend(self.g_adam, self.g_loss(logits))
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.generator.parameters(), strict=True)
            for kept, new in pairs:
                kept.lerp_(new, 1 - self.config.ema_decay)

    @staticmethod
    def _descend(adam, loss) -> None:
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()


def studiogan(config) -> tuple:
    """StudioGAN's BigGAN for CIFAR-10, and the hinge losses."""
    import torch

    # Theirs imports what draws and logs; the networks use a context of it that does nothing.
    helpers = types.ModuleType('utils.misc')
    helpers.dummy_context_mgr = contextlib.nullcontext
    sys.modules['utils.misc'] = helpers
    from models import big_resnet
    from utils import ops

    made = types.SimpleNamespace(d_bn=ops.batchnorm_2d, g_bn=ops.ConditionalBatchNorm2d)
    made.g_act_fn = made.d_act_fn = torch.nn.ReLU(inplace=False)
    for side in 'gd':
        for kind in ('conv2d', 'linear', 'embedding'):
            name = 'sn_embedding' if kind == 'embedding' else f'sn{kind}'
            setattr(made, f'{side}_{kind}', getattr(ops, name))
    model, options = types.SimpleNamespace(info_type='N/A', g_info_injection='N/A'), config.model
    end = ('ortho', 1, False, made, model)
    shape = options.latent_dim, options.shared_dim, 32, options.channels, True, [2]
    generator = big_resnet.Generator(*shape, 'cBN', CLASSES, *end)
    shape = 32, options.channels, True, True, [1], 'PD', 'W/O', 0, False
    discriminator = logits_of(big_resnet.Discriminator(*shape, CLASSES, *end))

    def d_loss(on_real, on_made):
        return torch.relu(1 - on_real).mean() + torch.relu(1 + on_made).mean()

    return generator, discriminator, (d_loss, lambda logits: -logits.mean())


def logits_of(module):
    """StudioGAN's discriminator, as one that gives the logits only."""
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, x, label):
            return self.module(x, label)['adv_output']

    return Wrapped()


def stylegan(config) -> tuple:
    """The authors' StyleGAN2 for CIFAR-10, and the non-saturating losses."""
    import torch
    from torch.nn.functional import one_hot, softplus

    # Theirs asks a module that newer setuptools lack for an older torch's ways.
    resources = types.ModuleType('pkg_resources')
    resources.parse_version = version.parse
    sys.modules['pkg_resources'] = resources
    from training import networks_stylegan2 as networks

    options = config.model
    shared = {'channel_base': options.channel_base, 'channel_max': options.channel_max}
    shape = {'img_resolution': 32, 'img_channels': 3, 'c_dim': CLASSES}

    class Told(torch.nn.Module):
        """Takes labels as numbers."""

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x, label):
            return self.module(x, one_hot(label, CLASSES).float()).reshape(len(x), -1).squeeze(-1)

    class Generator(Told):
        """Images, with new noise."""

        def forward(self, z, label):
            return self.module(z, one_hot(label, CLASSES).float())

    generator = networks.Generator(
        z_dim=options.latent_dim,
        w_dim=options.w_dim,
        mapping_kwargs={'num_layers': options.mapping_layers},
        fused_modconv_default='inference_only',
        **shape,
        **shared,
    )
    discriminator = networks.Discriminator(
        architecture=options.d_architecture,
        epilogue_kwargs={'mbstd_group_size': options.mbstd_group},
        **shape,
        **shared,
    )

    def d_loss(on_real, on_made):
        return softplus(-on_real).mean() + softplus(on_made).mean()

    return Generator(generator), Told(discriminator), (d_loss, lambda x: softplus(-x).mean())


PEERS = {'biggan_cifar10': studiogan, 'stylegan2_cifar10': stylegan}


def checkout(name: str) -> Path:
    """Where the authors' code of a config is."""
    place = Path(FLAGS.reference).expanduser() / CHECKOUTS[name]
    if not place.is_dir():
        raise UserError(f'--reference={FLAGS.reference}: expected the checkout {place} in it')
    return place


def compared(name: str, place: Path) -> dict:
    """Ratios of one config: ours to each of theirs, whose code is in `place`."""
    sys.path.insert(0, str(place))
    config = config_of(name)
    ours, peer = Ours(config), PEERS[name](config)
    theirs = {k: Theirs(config, *peer, k == 'channels_last') for k in ('eager', 'channels_last')}
    for each in theirs.values():
        if each.sizes != ours.sizes:
            raise UserError(f'{name}: {each.sizes} parameters there, {ours.sizes} here')
    steps = STEPS[name]
    functions = {k: lambda each=each: each.turn(steps) for k, each in theirs.items()}
    times = interleaved({'gen_jax': lambda: ours.turn(steps), **functions}, FLAGS.turns)
    seconds = {k: statistics.median(x) / steps for k, x in times.items()}
    return {'parameters': ours.sizes, 'seconds': seconds, 'over': ratios(times, 'gen_jax')}


def table(found: dict) -> str:
    """Markdown, of ratios."""
    lines = ['| training step | over eager | over channels_last |', '|---|---|---|']
    for name, row in found.items():
        cells = [
            f'{x["ratio"]:.2f} ({x["least"]:.2f} to {x["greatest"]:.2f})'
            for x in row['over'].values()
        ]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Measures, prints, writes."""
    out, found = scripts.file(FLAGS.out), {}
    for name, place in {name: checkout(name) for name in PEERS}.items():
        found[name] = compared(name, place)
        print(name, found[name], flush=True)
    told = {'batch_size': FLAGS.batch_size, 'turns': FLAGS.turns}
    workdir.write_json(out, {**told, **found})
    scripts.write(out, table(found))


if __name__ == '__main__':
    scripts.start(define_flags, main)
