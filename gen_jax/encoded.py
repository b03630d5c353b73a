"""What `config.eval` asks of a model's latents: of a split, encoded, and decoded again."""

from collections.abc import Iterator

import numpy as np

from gen_jax.data import pipeline, sources
from gen_jax.data.sources import Source
from gen_jax.metrics import compare
from gen_jax.metrics.features.extract import Extractor
from gen_jax.metrics.probe import probe
from gen_jax.runtime.program import Program

PROBED = 10_000  # images that a probe is fitted to, at most
ACTIVE = 0.01  # variance over images of a latent that is in use (Burda et al. 2016, section 5)


def returned(program: Program, state, source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images, and what they come back as: float32 [b, h, w, c] in [-1, 1] each."""
    for examples in sources.batches_of(source, program.config.batch_size):
        batch = program.given(examples)
        latents = program.encode(state, batch)
        yield batch['image'], program.decode(state, latents, batch.get('label'))


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
    seen, others = [fitted[int(i)] for i in at], examples_of(held_out)
    labels = [np.array([x['label'] for x in examples]) for examples in (seen, others)]
    pixels = [np.stack([x['image'] for x in examples]) for examples in (seen, others)]
    latents = [latents_of(program, state, examples) for examples in (seen, others)]
    data, rows = program.config.data, {}
    for name, features in (('probe', latents), ('probe_of_pixels', pixels)):
        found = probe(*zip(features, labels, strict=True))
        row = {**found.right._asdict(), 'converged': found.converged, 'n_reference': len(seen)}
        rows[name] = row | {'reference': f'{data.source} {data.split}'}
    return rows


def active_units(program: Program, state, source: Source) -> dict[str, dict]:
    """How many latents differ from image to image, as rows of metrics.json."""
    z = latents_of(program, state, examples_of(source))
    units = z.reshape(len(z), -1).astype(np.float64)
    found, data = int((units.var(0, ddof=1) > ACTIVE).sum()), program.config.data
    told = {'of': units.shape[1], 'n': len(z), 'data': f'{data.source} {data.eval_split}'}
    return {'active_units': {'value': found, **told}}


def latents_of(program: Program, state, examples: list[dict]) -> np.ndarray:
    """The latents of a source's examples, [n, ...]."""
    parts = sources.batches_of(examples, program.config.batch_size)
    return np.concatenate([program.encode(state, program.given(part)) for part in parts])


def examples_of(source: Source) -> list[dict]:
    """All of a source."""
    return [source[i] for i in range(len(source))]
