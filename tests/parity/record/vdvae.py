"""Writes golden/vdvae.npz: `python tests/parity/record/vdvae.py --source=CHECKOUT`.

CHECKOUT is github.com/openai/vdvae at ea35b49 (MIT). Needs torch (recorded with 2.13), whose AdamW
stands for apex's: the same update, but for rounding.
"""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from deep import filled_vdvae, noise_of
from golden import save

# Widths that differ, maps of 2x2 and 1x1, resolutions that begin with 0, blocks after a mixin.
LADDER = {
    'image_size': 8,
    'width': 8,
    'custom_width_str': '4:10,2:10,1:12',
    'enc_blocks': '8x1,8d2,4x2,4d2,2,2d2,1x1',
    'dec_blocks': '1x2,2m1,4m2,4x1,8m4,8x1',
    'no_bias_above': 2,
    'bottleneck_multiple': 0.4,
    'zdim': 3,
}
# A factor of 3, and one image.
ODD = {
    'image_size': 6,
    'width': 5,
    'custom_width_str': '',
    'enc_blocks': '6x1,6d3,2x1,2d2',
    'dec_blocks': '1x1,2m1,6m2',
    'no_bias_above': 64,
    'bottleneck_multiple': 0.6,
    'zdim': 2,
}
CASES = {'ladder': (LADDER, 2), 'odd': (ODD, 1)}  # and how many images
SHIFT, SCALE = -120.63838, 1.0 / 64.16736  # data.py, of cifar10
TEMPERATURE = 0.7
# Training: as hps.py has it but for the sizes of steps, so that they show, and what is skipped.
TRAINED = {
    **{'lr': 0.01, 'wd': 0.1, 'adam_beta1': 0.9, 'adam_beta2': 0.9, 'warmup_iters': 2},
    **{'ema_rate': 0.8, 'grad_clip': 0.5, 'skip_threshold': 1.0},
}
BATCHES, SKIPPED = 5, 3  # after the warm-up; its images are far from the others


def stub() -> None:
    """What their modules import and this does not use; torch's AdamW for apex's."""
    for name in ('imageio', 'mpi4py', 'apex', 'apex.optimizers', 'data'):
        sys.modules[name] = ModuleType(name)
    sys.modules['mpi4py'].MPI = sys.modules['data'].set_up_data = sys.modules['data'].mkdir_p = None
    sys.modules['apex.optimizers'].FusedAdam = torch.optim.AdamW


def levels(seed: int, n: int, size: int) -> np.ndarray:
    """Images of 8 bits, smooth and with levels 0 and 255, [n, size, size, 3]."""
    x = np.random.default_rng(seed).standard_normal((n, size, size, 3)).cumsum(1) * 60 + 128
    return np.clip(np.round(x), 0, 255)


def both(x: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """What data.py gives the encoder and the loss."""
    x = torch.tensor(x)
    return (x + SHIFT) * SCALE, (x - 127.5) / 127.5


def nhwc(x: torch.Tensor) -> np.ndarray:
    """[b, c, h, w] -> float32 [b, h, w, c]."""
    return x.detach().permute(0, 2, 3, 1).numpy().astype(np.float32)


def flat(zs: list) -> np.ndarray:
    """All layers' [b, c, h, w] as our [b, dim]."""
    return np.concatenate([nhwc(z).reshape(len(z), -1) for z in zs], 1)


def feed(vae, seed: int) -> None:
    """Makes the next draws of latents those of `noise_of`, from layer 0 on."""
    drawn = iter(range(1000))

    def draw(mu, log_sigma):
        b, c, h, w = mu.shape
        eps = noise_of(seed, next(drawn), (b, h, w, c))
        return torch.exp(log_sigma) * torch.tensor(eps.transpose(0, 3, 1, 2)) + mu

    vae.draw_gaussian_diag_samples = draw


def build(vae, sizes: dict):
    """Their model with `filled_vdvae` weights, and the shapes of these."""
    H = sys.modules['hps'].Hyperparams(sizes)
    H.update({'image_channels': 3, 'num_mixtures': 10, 'dataset': 'cifar10'})
    net = vae.VAE(H)
    shapes = {name: tuple(x.shape) for name, x in net.state_dict().items()}
    weights = filled_vdvae(shapes)
    net.load_state_dict({name: torch.tensor(x) for name, x in weights.items()})
    return net, H, shapes


def network(vae, name: str) -> dict:
    """Activations, latents, divergences, maps, terms and the gradient of the loss."""
    sizes, n = CASES[name]
    net, _, shapes = build(vae, sizes)
    x = levels(0, n, sizes['image_size'])
    seen, target = both(x)
    activations = net.encoder(seen)
    feed(vae, 1)
    y, stats = net.decoder(activations, get_latents=True)
    feed(vae, 1)
    terms = net(seen, target)
    terms['elbo'].backward()
    kept = {'x': x.astype(np.uint8), 'told': json.dumps(sizes | {'shapes': shapes})}
    kept |= {f'activation_{r}': nhwc(a) for r, a in activations.items()}
    kept |= {'z': flat([s['z'] for s in stats]), 'y': nhwc(y)}
    kept['kl'] = torch.stack([s['kl'].sum((1, 2, 3)) for s in stats], 1).detach().numpy()
    kept |= {k: terms[k].detach().numpy() for k in ('elbo', 'distortion', 'rate')}
    kept |= {f'grad.{k}': p.grad.numpy() for k, p in net.named_parameters()}
    with torch.no_grad():
        for key, t in (('drawn', 1.0), ('cold', TEMPERATURE)):
            feed(vae, 2)
            kept[key] = nhwc(net.decoder.forward_uncond(n, t=t))
        given = net.decoder.forward_manual_latents(n, [s['z'] for s in stats])
        kept['given'] = nhwc(given)
    return kept


def training(vae, train, train_helpers) -> dict:
    """Parameters and their average after some steps, of which one is skipped."""
    net, H, shapes = build(vae, ODD)
    average, _, _ = build(vae, ODD)
    average.requires_grad_(False)
    H.update(TRAINED)
    train.get_cpu_stats_over_ranks = lambda stats: stats
    optimizer, scheduler, *_ = train_helpers.load_opt(H, net, lambda *args: None)
    x = np.stack([levels(10 + i, 2, ODD['image_size']) for i in range(BATCHES)])
    x[SKIPPED] = 255 * (x[SKIPPED] > 128)
    norms, skipped = [], []
    for i in range(BATCHES):
        feed(vae, 10 + i)
        found = train.training_step(H, *both(x[i]), net, average, optimizer, i)
        scheduler.step()
        norms.append(found['grad_norm'])
        skipped.append(found['skipped_updates'])
    told = ODD | TRAINED | {'shapes': shapes}
    kept = {'told': json.dumps(told), 'x': x.astype(np.uint8), 'norms': np.array(norms)}
    kept['skipped'] = np.array(skipped)
    kept |= {f'after.{k}': x.numpy() for k, x in net.state_dict().items()}
    return kept | {f'average.{k}': x.numpy() for k, x in average.state_dict().items()}


def mixture(vae_helpers) -> dict:
    """Their likelihood of levels, the edges' among them, where no mass is below 1e-5."""
    random = np.random.default_rng(5)
    x = random.integers(0, 256, (2, 3, 5, 3))
    x[:, 0, 0], x[:, 0, 1] = 0, 255
    numbers = 0.5 * random.standard_normal((2, 3, 5, 100))
    numbers[..., 10:] -= np.tile(np.repeat([0.0, 1.0, 0.0], 10), 3)  # log scales near -1
    target = torch.tensor((x - 127.5) / 127.5)
    loss = vae_helpers.discretized_mix_logistic_loss(target, torch.tensor(numbers))
    return {'x': x.astype(np.uint8), 'numbers': numbers.astype(np.float32), 'loss': loss.numpy()}


def main() -> None:
    """Records every case, in float64."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    stub()
    torch.set_default_dtype(torch.float64)
    import train
    import train_helpers
    import vae
    import vae_helpers

    cases = {name: network(vae, name) for name in CASES}
    cases |= {'mixture': mixture(vae_helpers), 'training': training(vae, train, train_helpers)}
    arrays = {f'{name}.{key}': x for name, case in cases.items() for key, x in case.items()}
    small = {
        k: np.float32(x) if getattr(x, 'dtype', None) == np.float64 else x
        for k, x in arrays.items()
    }
    save('vdvae', **small)


if __name__ == '__main__':
    main()
