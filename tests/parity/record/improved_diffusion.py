"""Writes golden/improved_diffusion.npz: `python .../improved_diffusion.py --source=CHECKOUT`.

CHECKOUT is github.com/openai/guided-diffusion at 22e0df81 (MIT), whose gaussian_diffusion.py,
respace.py and resample.py are those of github.com/openai/improved-diffusion and what came later.
Needs torch (recorded with 2.13). A table of random numbers, leaning on x_t, stands for a network.
"""

import argparse
import json
import sys
from itertools import count
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import save

T, STEPS = 50, 10
SHAPE = (2, 4, 3, 2)  # [b, h, w, c]
# For each: the schedule, what the network says, and the variance, by the names of gen_jax.
CASES = {
    'hybrid': ('cosine', 'eps', 'learned_range'),
    'of_x_0': ('linear', 'x_0', 'learned_range'),
    'large': ('linear', 'eps', 'fixed_large'),
    'small': ('cosine', 'x_0', 'fixed_small'),
}
SPACED = ((1000, 27), (1000, 50), (1000, 250), (4000, 25), (4000, 100), (4000, 400), (300, 299))


def inputs() -> dict:
    """Images, noise for each time, and what the network says but for 0.3 x_t."""
    rng = np.random.default_rng(0)
    x_0 = np.round(rng.uniform(0, 255, SHAPE)) / 127.5 - 1
    x_0[0, 0] = [-1, 1]  # the ends have bins of their own
    table = 0.6 * rng.standard_normal((T, *SHAPE[:3], 2 * SHAPE[3]))
    # Near the image at first, since theirs tells no probabilities below 1e-12.
    table[0, ..., : SHAPE[3]] = 0.7 * x_0 + 0.02 * rng.standard_normal(SHAPE)
    noise = rng.standard_normal((T, *SHAPE))
    return {'x_0': np.float32(x_0), 'noise': np.float32(noise), 'table': np.float32(table)}


def torches(x):
    """[..., h, w, c] -> [..., c, h, w]."""
    return torch.tensor(np.moveaxis(x, -1, -3))


def back(x):
    return np.moveaxis(x.detach().numpy(), -3, -1)


class Network:
    """The stand-in, which keeps what it last said."""

    def __init__(self, table, channels):
        self.table = torches(table[..., :channels])

    def __call__(self, x, told):
        # What it is told counts to 1000, whatever T is.
        t = (told * T / 1000).round().long()
        some = torch.cat([x, x], 1)[:, : self.table.shape[2]]
        self.said = 0.3 * some.detach() + self.table[t[0]]
        self.said.requires_grad_()
        return self.said


def diffusion(gd, make, betas, mean, variance, loss):
    kinds = {'eps': gd.ModelMeanType.EPSILON, 'x_0': gd.ModelMeanType.START_X}
    variances = {
        'learned_range': gd.ModelVarType.LEARNED_RANGE,
        'fixed_large': gd.ModelVarType.FIXED_LARGE,
        'fixed_small': gd.ModelVarType.FIXED_SMALL,
    }
    return make(
        betas=gd.get_named_beta_schedule(betas, T),
        model_mean_type=kinds[mean],
        model_var_type=variances[variance],
        loss_type=loss,
        rescale_timesteps=True,
    )


def run(gd, respace, given: dict, betas: str, mean: str, variance: str) -> dict:
    """Losses and their gradients, the bound's terms, and a respaced sample, of one case."""
    learned = variance == 'learned_range'
    network = Network(given['table'], SHAPE[3] * (1 + learned))
    x_0, noise = torches(given['x_0']), torches(given['noise'])
    out = {}
    kinds = {'vlb': gd.LossType.RESCALED_KL}
    kinds['hybrid' if learned else 'simple'] = gd.LossType.RESCALED_MSE
    for name, kind in kinds.items():
        theirs = diffusion(gd, gd.GaussianDiffusion, betas, mean, variance, kind)
        each, slopes = [], []
        for t in range(T):
            times = torch.full(SHAPE[:1], t)
            loss = theirs.training_losses(network, x_0, times, noise=noise[t])['loss']
            slopes.append(back(torch.autograd.grad(loss.sum(), network.said)[0]))
            each.append(loss.detach().numpy())
        out |= {f'loss_{name}': np.stack(each), f'slope_{name}': np.stack(slopes)[[0, 1, 20, 49]]}
    for name in ('sqrt_alphas_cumprod', 'posterior_mean_coef1', 'posterior_mean_coef2'):
        out[name] = getattr(theirs, name)
    out['posterior_log_variance_clipped'] = theirs.posterior_log_variance_clipped

    times = count(T - 1, -1)
    gd.th.randn_like = lambda x: noise[next(times)]
    bits = theirs.calc_bpd_loop(network, x_0)
    out |= {'prior': bits['prior_bpd'].numpy(), 'bits': bits['vb'].numpy()[:, ::-1]}

    def spaced(**options):
        return respace.SpacedDiffusion(respace.space_timesteps(T, [STEPS]), **options)

    theirs = diffusion(gd, spaced, betas, mean, variance, gd.LossType.MSE)
    times = count(STEPS - 1, -1)
    gd.th.randn_like = lambda x: noise[next(times)]
    sample = theirs.p_sample_loop(network, x_0.shape, noise=noise[0], device='cpu')
    return out | {'sample': back(sample), 'told': json.dumps([betas, mean, variance])}


def resampled(resample) -> dict:
    """How likely each of 5 times becomes, as losses come in."""
    rng = np.random.default_rng(1)
    resample.np.int = int  # numpy 1.24 took it away

    class FiveTimes:
        num_timesteps = 5

    theirs = resample.LossSecondMomentResampler(FiveTimes())
    # Of 40 draws more than 10 are of the first time, of which the last 10 count.
    t = rng.choice(5, (12, 40), p=[0.5, 0.2, 0.15, 0.1, 0.05])
    losses = np.float32(rng.exponential(1 + t))
    likely = []
    for some_t, some_losses in zip(t, losses, strict=True):
        theirs.update_with_all_losses(some_t, some_losses)
        likely.append(theirs.weights() / theirs.weights().sum())
    return {'resampled.t': t, 'resampled.losses': losses, 'resampled.p': np.stack(likely)}


def main() -> None:
    """Records everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    from guided_diffusion import gaussian_diffusion as gd
    from guided_diffusion import losses, resample, respace

    # Theirs approximates the normal distribution by a tanh, which is off by up to 2e-4.
    losses.approx_standard_normal_cdf = lambda x: torch.special.ndtr(x.double())
    given = inputs()
    arrays = {
        f'betas.cosine_{n}': gd.get_named_beta_schedule('cosine', n) for n in (50, 1000, 4000)
    }
    arrays |= {
        f'spaced.{total}_{steps}': np.int16(sorted(respace.space_timesteps(total, [steps])))
        for total, steps in SPACED
    }
    for name, case in CASES.items():
        told = run(gd, respace, given, *case)
        arrays |= {f'{name}.{key}': value for key, value in told.items()}
    save('improved_diffusion', **given, **arrays, **resampled(resample))


if __name__ == '__main__':
    main()
