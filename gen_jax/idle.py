"""What of the command line would change nothing, as nothing reads it.

A config may hold such values: with a flag that turns a penalty off, its weight stays where it is.
Who sets a field by a flag wants it to count.
"""

from collections.abc import Iterable
from pathlib import Path

from gen_jax.config import defaults_of, method_module
from gen_jax.errors import UserError
from gen_jax.runtime import workdir

# What fields serve: (fields, config -> whether it is there, what it is). Methods have their own.
SERVES = (
    ('optimizer.decay', lambda c: c.optimizer.decay_steps, 'optimizer.decay_steps'),
    ('ema_rampup ema_start', lambda c: c.ema_decay, 'ema_decay'),
    (
        'data.fit',
        lambda c: (
            c.data.source[:6] not in ('shapes', 'sprite')
            or c.edit.images
            or c.explore.images
            or c.eval.network != 'inception'
        ),
        'images of other sizes',
    ),
    ('data.tfds_dir', lambda c: c.data.source.startswith('tfds:'), "data.source='tfds:NAME'"),
    ('eval.resize eval.dims', lambda c: c.eval.network == 'inception', "eval.network='inception'"),
    (
        'eval.perceptual_weights eval.perceptual_heads',
        lambda c: c.eval.perceptual != 'ssim',
        "eval.perceptual='alex', 'vgg' or 'squeeze'",
    ),
    ('eval.every_n', lambda c: c.eval.every, 'eval.every'),
    (
        'edit.mask',
        lambda c: c.edit.task in ('inpaint', 'repaint'),
        "edit.task='inpaint' or 'repaint'",
    ),
    ('edit.strength', lambda c: c.edit.task == 'vary', "edit.task='vary'"),
    ('edit.jump edit.repeats', lambda c: c.edit.task == 'repaint', "edit.task='repaint'"),
    (
        'edit.eta',
        lambda c: c.edit.task not in ('reconstruct', 'interpolate'),
        'an edit.task that draws noise',
    ),
    ('edit.results', lambda c: c.edit.task != 'reconstruct', 'an edit.task of several results'),
    ('explore.space', lambda c: c.explore.task == 'interpolate', "explore.task='interpolate'"),
    (
        'explore.layers',
        lambda c: c.explore.task in ('mixing', 'boundary', 'principal'),
        "explore.task='mixing', 'boundary' or 'principal'",
    ),
    (
        'explore.spread',
        lambda c: c.explore.task in ('boundary', 'principal', 'traverse'),
        "explore.task='boundary', 'principal' or 'traverse'",
    ),
    (
        'explore.samples',
        lambda c: c.explore.task in ('project', 'boundary', 'principal'),
        "explore.task='project', 'boundary' or 'principal'",
    ),
    ('explore.attribute', lambda c: c.explore.task == 'boundary', "explore.task='boundary'"),
    (
        'explore.images explore.steps explore.learning_rate explore.extended explore.pixel_weight',
        lambda c: c.explore.task == 'project',
        "explore.task='project'",
    ),
)


def require_none(config, given: Iterable[str], folder: Path) -> None:
    """Raises the UserError of a field that nothing reads.

    Args:
      config: as the command line left it.
      given: the fields, dotted, that it set; those that got their default change nothing indeed.
      folder: the workdir, whose run goes on with what it began with.
    """
    rows = (*SERVES, *getattr(method_module(config.method), 'SERVES', ()))
    served = {field: row for row in rows for field in row[0].split()}
    known, path = workdir.flat(defaults_of(config)), folder / 'config.json'
    kept = workdir.read_json(path) if path.is_file() else {}
    asked = workdir.flat(config)
    for field in (x for x in given if x in served and x in known):
        _, is_there, what = served[field]
        value = asked[field]
        if value not in (known[field], kept.get(field, known[field])) and not is_there(config):
            raise UserError(
                f'config.{field}={value!r} changes nothing without {what}: leave it out, or set '
                'what it serves'
            )
