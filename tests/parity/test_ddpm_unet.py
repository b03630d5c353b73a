"""Our U-Net, schedules and sampler steps against diffusers, with random weights shared by file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

from gen_jax.diffusion import samplers  # noqa: E402
from gen_jax.diffusion.schedules import (  # noqa: E402
    DiscreteProcess,
    Trajectory,
    linear_betas,
    spaced_times,
)
from gen_jax.interop.diffusers_ddpm import load_unet, save_unet  # noqa: E402

CIFAR = {'size': 32, 'widths': (128, 256, 256, 256), 'attention': (1,), 'blocks': 2, 'groups': 32}
DIGITS = {'size': 8, 'widths': (16, 32), 'attention': (1,), 'blocks': 1, 'groups': 8}
THREE = {'size': 28, 'widths': (16, 32, 48), 'attention': (0, 2), 'blocks': 2, 'groups': 8}


def theirs(tmp_path, size, widths, attention, blocks, groups, classes=None, channels=3):
    """diffusers' network in the paper's form, every parameter random, saved to tmp_path."""
    torch.manual_seed(0)
    down = ['AttnDownBlock2D' if i in attention else 'DownBlock2D' for i in range(len(widths))]
    up = [name.replace('Down', 'Up') for name in reversed(down)]
    net = diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=blocks,
        norm_num_groups=groups,
        norm_eps=1e-6,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        dropout=0.1,
        num_class_embeds=classes,
    )
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:  # norms and biases start at 0 or 1, which hides mistakes
                parameter.add_(0.2 * torch.randn_like(parameter))
    net.eval().save_pretrained(tmp_path)
    return net


def run_both(tmp_path, net, x, t, label=None):
    """(ours, theirs) on the same NHWC input."""
    unet, params = load_unet(str(tmp_path))
    ours = jax.jit(unet.apply)({'params': params}, x, t, label)
    with torch.no_grad():
        want = net(
            torch.tensor(x).permute(0, 3, 1, 2),
            torch.tensor(t),
            class_labels=None if label is None else torch.tensor(label, dtype=torch.long),
        ).sample
    return np.asarray(ours), want.permute(0, 2, 3, 1).numpy()


def relative(ours, want):
    """The largest difference over the standard deviation of what is wanted."""
    return np.abs(ours - want).max() / want.std()


def image(b, size, channels=3):
    rng = np.random.default_rng(1)
    return rng.standard_normal((b, size, size, channels), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize('t', [[17], [0, 999, 123.5]])
def test_cifar_net_agrees(tmp_path, t):
    net = theirs(tmp_path, **CIFAR)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307
    ours, want = run_both(tmp_path, net, image(len(t), 32), np.float32(t))
    print('max diff / scale', relative(ours, want))
    assert relative(ours, want) < 1e-4


@pytest.mark.parametrize('shape', [DIGITS, THREE])
def test_small_net_agrees(tmp_path, shape):
    net = theirs(tmp_path, **shape)
    ours, want = run_both(tmp_path, net, image(3, shape['size']), np.float32([0, 1.25, 777]))
    print('max diff / scale', relative(ours, want))
    assert relative(ours, want) < 1e-4


def test_class_conditional_net_agrees(tmp_path):
    net = theirs(tmp_path, **DIGITS, classes=11, channels=1)
    label = np.int32([0, 10, 3])
    ours, want = run_both(tmp_path, net, image(3, 8, 1), np.int32([3, 5, 900]), label)
    other, _ = run_both(tmp_path, net, image(3, 8, 1), np.int32([3, 5, 900]), label[::-1].copy())
    print('max diff / scale', relative(ours, want))
    assert relative(ours, want) < 1e-4
    assert relative(other, want) > 1e-2


def test_gradients_agree(tmp_path):
    net = theirs(tmp_path, **DIGITS)
    unet, params = load_unet(str(tmp_path))
    x, t = image(2, 8), np.float32([5, 600])

    def loss(params):
        return (unet.apply({'params': params}, x, t) ** 2).mean()

    grads = jax.jit(jax.grad(loss))(params)
    net(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t)).sample.square().mean().backward()
    with torch.no_grad():  # so that the gradients travel by the same road as the weights
        for parameter in net.parameters():
            parameter.copy_(parameter.grad)
    net.save_pretrained(tmp_path)
    _, want = load_unet(str(tmp_path))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    largest = max(np.abs(g).max() for g in jax.tree.leaves(want))
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-5 * largest), grads, want
    )


def test_diffusers_loads_what_we_save(tmp_path):
    net = theirs(tmp_path / 'theirs', **THREE, classes=4)
    unet, params = load_unet(str(tmp_path / 'theirs'))
    save_unet(unet, params, 28, str(tmp_path / 'ours'))
    again, report = diffusers.UNet2DModel.from_pretrained(
        tmp_path / 'ours', output_loading_info=True
    )
    assert not any(report.values()), report
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert public(again.config) == public(net.config)


def public(config):
    """A config of theirs as JSON would give it back, without where it came from."""
    return json.loads(json.dumps({k: v for k, v in config.items() if not k.startswith('_')}))


def float64_scheduler(cls, **kwargs):
    """A scheduler of theirs with its constants in float64, which it keeps in float32."""
    scheduler = cls(beta_schedule='linear', **kwargs)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.final_alpha_cumprod = scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def our_process():
    return DiscreteProcess.from_betas(linear_betas(1000, 1e-4, 0.02))


def test_schedule_agrees():
    process, scheduler = our_process(), diffusers.DDPMScheduler()
    np.testing.assert_allclose(process.beta, scheduler.betas, rtol=1e-6)
    np.testing.assert_allclose(process.alpha_bar, scheduler.alphas_cumprod, rtol=2e-5)  # float32
    exact = float64_scheduler(diffusers.DDPMScheduler)
    np.testing.assert_allclose(process.alpha_bar, exact.alphas_cumprod, rtol=1e-13)


def trajectory(sampler, shape=(4, 4, 3), n=2):
    """Runs a sampler on a made-up network; gives x_T, the noises, the estimates and x_0."""
    keys = jax.random.split(jax.random.key(0), n)

    def denoise(x_t, t):  # often outside of [-1, 1], so that clipping is at work
        return jnp.clip(0.8 * x_t + 0.3 * jnp.sin(t)[:, None, None, None], -1, 1)

    return keys, denoise, sampler(denoise, keys, shape)


def replay(scheduler, denoise, keys, shape, visited, step):
    """Their loop over the same times with our noises, in float64."""
    x = torch.tensor(np.asarray(samplers.normal(keys, 0, shape), np.float64))
    for i in reversed(range(len(visited))):
        t = int(visited[i])
        a = scheduler.alphas_cumprod[t]
        x_0 = torch.tensor(
            np.asarray(denoise(jnp.float32(x.numpy()), jnp.full(len(x), t)), np.float64)
        )
        eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        noise = torch.tensor(np.asarray(samplers.normal(keys, i, shape), np.float64))
        x = step(eps, t, x, noise)
    return x.numpy()


@pytest.mark.parametrize('variance', ['fixed_small', 'fixed_large'])
def test_ancestral_agrees(variance, monkeypatch):
    process, shape = our_process(), (4, 4, 3)
    through = Trajectory.create(process, jnp.full(2, 1000), 'linear')
    keys, denoise, ours = trajectory(lambda d, k, s: samplers.ancestral(d, through, k, s, variance))
    scheduler = float64_scheduler(diffusers.DDPMScheduler, variance_type=variance)
    module = __import__('diffusers.schedulers.scheduling_ddpm', fromlist=['randn_tensor'])

    def step(eps, t, x, noise):
        monkeypatch.setattr(module, 'randn_tensor', lambda *args, **kwargs: noise)
        return scheduler.step(eps, t, x).prev_sample

    want = replay(scheduler, denoise, keys, shape, process.tau, step)
    print('max diff', np.abs(ours - want).max())
    np.testing.assert_allclose(ours, want, atol=2e-6)


@pytest.mark.parametrize('eta', [0.0, 0.3, 1.0])
def test_ddim_agrees(eta):
    process, shape = our_process(), (4, 4, 3)
    visited = spaced_times(1000, 20, 'linear')
    through = Trajectory.create(process, jnp.full(2, 20), 'linear')
    keys, denoise, ours = trajectory(
        lambda d, k, s: samplers.ddim(d, through, k, s, jnp.full(2, eta))
    )
    scheduler = float64_scheduler(diffusers.DDIMScheduler, set_alpha_to_one=True)
    scheduler.set_timesteps(20)
    np.testing.assert_array_equal(visited, scheduler.timesteps.numpy()[::-1])

    def step(eps, t, x, noise):
        # Their default keeps the network's eps after clipping x_0; ours is computed back from x_0.
        out = scheduler.step(eps, t, x, eta, use_clipped_model_output=True, variance_noise=noise)
        return out.prev_sample

    want = replay(scheduler, denoise, keys, shape, visited, step)
    print('max diff', np.abs(ours - want).max())
    np.testing.assert_allclose(ours, want, atol=2e-6)
