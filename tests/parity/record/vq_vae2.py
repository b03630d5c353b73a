"""Writes golden/vq_vae2.npz: `python tests/parity/record/vq_vae2.py --source=CHECKOUT`.

CHECKOUT is github.com/rosinality/vq-vae-2-pytorch at ef5f67c (MIT), an unofficial port. Needs torch
(recorded with 2.13, on a CPU).
"""

import argparse
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import filled, save

# The constructor's arguments, and the images.
CASES = {
    'colour': (
        {'in_channel': 3, 'channel': 12, 'n_res_block': 2, 'n_res_channel': 5}
        | {'embed_dim': 6, 'n_embed': 17},
        (2, 16, 24, 3),
    ),
    'grey': (
        {'in_channel': 1, 'channel': 6, 'n_res_block': 1, 'n_res_channel': 4}
        | {'embed_dim': 4, 'n_embed': 9},
        (1, 8, 8, 1),
    ),
}
COMMITMENT = 0.25  # of train_vqvae.py
LEVELS = 't', 'b'


def nhwc(x: torch.Tensor) -> np.ndarray:
    """[b, c, h, w] -> [b, h, w, c]."""
    return x.detach().permute(0, 2, 3, 1).numpy()


def started(net: torch.nn.Module, given: torch.Tensor) -> dict:
    """Sets all weights by their names, and codes that are near what they are to stand for.

    Returns:
      What the codes and counts are, and the shapes of weights.
    """
    shapes = {name: tuple(x.shape) for name, x in net.named_parameters()}
    weights = {name: torch.tensor(x) for name, x in filled(shapes).items()}
    net.load_state_dict(weights, strict=False)
    random, kept, seen = np.random.default_rng(1), {}, []
    for level in LEVELS:  # the bottom's vectors depend on the top's codes
        quantizer = getattr(net, f'quantize_{level}')
        hook = quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            net.encode(given)
        hook.remove()
        vectors = seen.pop().flatten(0, -2).numpy()
        chosen = vectors[random.integers(0, len(vectors), quantizer.n_embed)]
        noise = random.standard_normal(chosen.shape, np.float32)
        kept[f'quantize_{level}.embed'] = (chosen + vectors.std() * noise / 2).T
        shape = quantizer.embed.shape
        kept[f'quantize_{level}.embed_avg'] = random.standard_normal(shape, np.float32)
        counts = random.uniform(0.5, 2, quantizer.n_embed).astype(np.float32)
        kept[f'quantize_{level}.cluster_size'] = counts
        for name, x in kept.items():
            if name.startswith(f'quantize_{level}.'):
                net.get_buffer(name).copy_(torch.tensor(x))
    return kept | {'shapes': json.dumps(shapes)}


def run(network, fields: dict, shape: tuple) -> dict:
    """What comes back and which codes, the loss, its gradients, and the codes after a step."""
    net = network(**fields)
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    given = torch.tensor(x).permute(0, 3, 1, 2)
    net.eval()
    told = started(net, given) | {'fields': json.dumps(fields)}
    with torch.no_grad():
        _, _, _, *indices = net.encode(given)
        back, _ = net(given)
    net.train()
    out, diff = net(given)
    loss = torch.nn.functional.mse_loss(out, given) + COMMITMENT * diff.mean()
    loss.backward()
    gradients = {f'grad.{name}': p.grad.numpy() for name, p in net.named_parameters()}
    after = {f'after.{name}': x.numpy() for name, x in net.named_buffers()}
    found = {f'indices_{k}': x.numpy() for k, x in zip(LEVELS, indices, strict=True)}
    found |= {'back': nhwc(back), 'loss': loss.item(), 'diff': diff.item()}
    return told | found | {'x': x} | gradients | after


def main() -> None:
    """Records every case, and sizes with 32 (the port) and 64 (the paper) residual channels."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    # What it asks of other machines; there are none.
    sys.modules['distributed'] = types.SimpleNamespace(all_reduce=lambda x: x)
    from vqvae import VQVAE

    arrays = {
        f'{name}.{key}': value
        for name, case in CASES.items()
        for key, value in run(VQVAE, *case).items()
    }
    counts = {
        hidden: sum(x.numel() for x in VQVAE(n_res_channel=hidden).parameters())
        for hidden in (32, 64)
    }
    save('vq_vae2', counts=json.dumps(counts), **arrays)


if __name__ == '__main__':
    main()
