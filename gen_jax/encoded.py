"""What `config.eval` asks of a model's latents: of a split, encoded, and decoded again."""

from collections.abc import Iterator, Sequence

import numpy as np

from gen_jax.data import pipeline, sources
from gen_jax.data.sources import Source
from gen_jax.metrics import compare, disentanglement
from gen_jax.metrics.features.extract import Extractor
from gen_jax.metrics.probe import probe
from gen_jax.runtime.program import Program

PROBED = 10_000  # images that a probe is fitted to, at most


def returned(program: Program, state, source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images, and what they come back as: float32 [b, h, w, c] in [-1, 1] each."""
    for examples, batch, latents in _encoded(program, state, source, range(len(source))):
        n, back = len(examples), program.decode(state, latents, batch.get('label'))
        yield batch['image'][:n], back[:n]


def rfid(program: Program, state, source: Source, look: Extractor) -> dict[str, dict]:
    """The Fréchet distance of `returned` from the images themselves, as rows of metrics.json."""
    back = (pipeline.to_uint8(images) for _, images in returned(program, state, source))
    real, seen = (
        compare.look(images, look, ('fid',)) for images in (sources.images_of(source), back)
    )
    row = compare.compare(real, seen, ('fid',))['fid']
    data = program.config.data
    told = {'reference': f'{data.source} {data.eval_split}', 'n_reference': real.n}
    return {'rfid' + look.suffix: {**row, **told, **look.provenance}}


def probed(program: Program, state, fitted: Source, held_out: Source) -> dict[str, dict]:
    """What a linear probe finds in latents, and in pixels, as rows of metrics.json.

    Args:
      fitted: labelled images, of which PROBED, spread evenly, fit the probe.
      held_out: those that it is asked about.
    """
    # Spread over the split, which may be sorted by class.
    at = np.linspace(0, len(fitted) - 1, min(PROBED, len(fitted))).astype(int)
    seen = _features(program, state, fitted, at)
    others = _features(program, state, held_out, range(len(held_out)))
    data, rows = program.config.data, {}
    for name in ('probe', 'probe_of_pixels'):
        found = probe(*((features[name], labels) for features, labels in (seen, others)))
        row = {**found.right._asdict(), 'converged': found.converged, 'n_reference': len(at)}
        rows[name] = row | {'reference': f'{data.source} {data.split}'}
    return rows


def _features(
    program: Program, state, source: Source, at: Sequence[int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What is probed of these examples, {name: [n, ...]}, pixels as uint8; and their labels [n]."""
    latents, pixels, labels = [], [], []
    for examples, _, z in _encoded(program, state, source, at):
        latents.append(z[: len(examples)])
        pixels.append(np.stack([x['image'] for x in examples]))
        labels += [x['label'] for x in examples]
    features = {'probe': np.concatenate(latents), 'probe_of_pixels': np.concatenate(pixels)}
    return features, np.array(labels)


def active_units(program: Program, state, source: Source) -> dict[str, dict]:
    """How many latents differ from image to image, as rows of metrics.json."""
    every = range(len(source))
    z = [z[: len(examples)] for examples, _, z in _encoded(program, state, source, every)]
    units = np.concatenate(z).reshape(len(source), -1)
    found, data = disentanglement.active_units(units), program.config.data
    told = {'of': units.shape[1], 'n': len(units), 'data': f'{data.source} {data.eval_split}'}
    return {'active_units': {'value': found, **told}}


def _encoded(
    program: Program, state, source: Source, at: Sequence[int]
) -> Iterator[tuple[list[dict], dict, np.ndarray]]:
    """Examples of a source in batches, and what the model makes of them.

    Yields:
      The examples; the batch that was made of them, of as many as all others so that one program
      serves: at its end some may be there again; its latents [b, ...].
    """
    size = min(program.config.batch_size, len(at))
    for start in range(0, len(at), size):
        examples = sources.read(source, at[start : start + size])
        batch = program.given([examples[i] for i in np.resize(np.arange(len(examples)), size)])
        yield examples, batch, program.encode(state, batch)
