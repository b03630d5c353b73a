"""What `config.eval` measures by: metrics, checked by name; real images and distances, opened.

The modes evaluate, train and explore, and the studies of experiments/, measure by the same.
"""

import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np

from gen_jax.config import nearest, require
from gen_jax.data import sources
from gen_jax.errors import UserError
from gen_jax.interop.weights import find, sha256
from gen_jax.metrics import compare, lpips, sets
from gen_jax.metrics.diversity import dissimilarity
from gen_jax.metrics.features.extract import DIMS, NETWORKS, Extractor
from gen_jax.metrics.features.resize import RESIZES
from gen_jax.metrics.ssim import smallest_side
from gen_jax.runtime.program import Program

# What a classifier says of samples, beside what `compare` knows.
CLASSIFIER = ('accuracy', 'modes')
# What looks at samples through no network of `eval.network`.
PERCEPTUAL = ('diversity', 'path_length', 'reconstruction')
# What looks at the eval split as the model encodes it, and at nothing that it draws.
ENCODED = ('rfid', 'probe', 'active_units')
METRICS = ('per_example', *compare.ROLE, *CLASSIFIER, *PERCEPTUAL, *ENCODED)
# Fields of Method; the others need `sample_step`.
NEEDS = {
    'per_example': ('evaluate_step',),
    'path_length': ('decode', 'latent_dim'),
    'reconstruction': ('encode', 'decode'),
    'rfid': ('encode', 'decode'),
    'probe': ('encode',),
    'active_units': ('encode',),
}


def check_names(options, names: Iterable[str], field: str = 'metrics') -> None:
    """Raises UserError where `config.eval` names what is not known; args as of `check`."""
    for name, known in (
        ('network', NETWORKS),
        ('resize', RESIZES),
        ('perceptual', ('ssim', *lpips.NETS)),
    ):
        value = options[name]
        if value not in known:
            raise UserError(f'config.eval.{name}={value!r} is unknown{nearest(value, known)}')
    require(options.dims in DIMS, 'eval.dims', options.dims, f'one of {DIMS}')
    for name in names:
        if name not in METRICS:
            near = nearest(str(name), METRICS)
            raise UserError(
                f"config.eval.{field}: no metric {name!r}{near}; written as \"('fid', 'kid')\""
            )


def check(program: Program, names: Iterable[str], field: str = 'metrics') -> None:
    """Raises UserError where the config, the method or the data cannot give a metric.

    Args:
      program: of the model.
      names: of metrics.
      field: of `config.eval`, that has them.
    """
    config, options = program.config, program.config.eval
    check_names(options, names, field)
    if not names:
        raise UserError(f'no metric in config.eval.{field}: name some of {", ".join(METRICS)}')
    for name in names:
        for needed in NEEDS.get(name, ('sample_step',)):
            if getattr(program.method, needed) is None:
                raise UserError(
                    f'config.method={config.method!r} has no {needed}, which metric {name!r} '
                    f'needs: leave it out of config.eval.{field}'
                )
    inception = options.network == 'inception'
    refused = (
        (
            {*CLASSIFIER} if inception else {},
            'needs a classifier of this data: set config.eval.network to digits or fashion_mnist',
        ),
        (
            {} if program.num_classes else {'accuracy'},
            "needs samples of a class: set config.data.num_classes ('modes' needs none)",
        ),
        (
            {'is', 'sfid'} if inception and options.dims != 2048 else {},
            f'is not of the {options.dims} features of config.eval.dims: set it to 2048',
        ),
        (
            {'path_length'} if options.perceptual != 'vgg' else {},
            "is measured by LPIPS over VGG-16: set config.eval.perceptual to 'vgg'",
        ),
        (
            {'probe'} if program.num_classes else {},
            'would find the labels that the model is told: set config.data.num_classes=0',
        ),
    )
    for cannot, why in refused:
        for name in names:
            if name in cannot:
                raise UserError(f'metric {name!r} {why}, or leave it out of config.eval.{field}')


class Reference:
    """The real images that samples are compared with: a split of the data, or an .npz.

    Attributes:
      name: for provenance.
      n: images; None where saved statistics do not tell.
      num_classes: of its labels; None where it has none.
      held_out: a source of real images that are not in the reference, or None.
    """

    def __init__(self, config, extractor: Extractor, metrics: list[str]):
        """Opens what `metrics` will be measured against; reads no image."""
        data, where = config.data, config.eval.reference or config.data.split
        self._extractor, self._metrics = extractor, metrics
        self._source = self._set = self.num_classes = self.held_out = None
        if where.endswith('.npz'):
            self._set = sets.open_set(where)
            self._set.check(metrics)
            self.name, self.n = where, len(self._set) or None
        else:
            self._source = sources.open_source(data, where)
            self.name, self.n = f'{data.source} {where}', len(self._source)
            self.num_classes = self._source.num_classes
            if data.eval_split != where:
                self.held_out = sources.open_source(data, data.eval_split)

    def look(self) -> compare.Seen:
        """The reference as the network sees it."""
        if not self._metrics:
            return compare.Seen(0, {}, {})
        if self._source is None:
            return sets.look(self._set, self._extractor, self._metrics)
        return compare.look(sources.images_of(self._source), self._extractor, self._metrics)

    def told(self, metric: str) -> dict:
        """What the provenance of a number says of the reference it was measured against."""
        if metric == 'is':
            return {}
        if self._source is not None:
            return {'reference': self.name, 'n_reference': self.n}
        saved = None
        if metric not in compare.NEEDS_ALL:
            saved = self._set.saved(compare.ROLE[metric], self._extractor.provenance)
        told = self._set.describe(saved)
        return {'reference': told, 'n_reference': told['n']}

    @functools.cached_property
    def class_counts(self) -> np.ndarray | None:
        """Of the reference's labels, [classes]; None where it has none: equal shares are taken."""
        if not self.num_classes:
            return None
        return np.bincount(sources.labels_of(self._source), minlength=self.num_classes)


def check_side(config, distance: str, what: str, mend: str) -> None:
    """Raises UserError where the config's images are too small for a distance, 'ssim' or LPIPS's.

    Args:
      config: with `data.image_size`.
      distance: as `config.eval.perceptual` names it.
      what, mend: what needs it, and how to do without.
    """
    side = smallest_side(1) if distance == 'ssim' else lpips.NETS[distance].smallest_side
    if config.data.image_size < side:
        raise UserError(
            f'{what} needs images of at least {side}x{side} pixels, and these have '
            f'{config.data.image_size}: {mend}'
        )


def open_distance(options) -> tuple[Callable, dict]:
    """The distance of `config.eval.perceptual`, and what the provenance of its numbers says.

    The distance is jitted, of images in [-1, 1]: ([b, h, w, c], the same) -> [b].
    """
    name, given = options.perceptual, (options.perceptual_weights, options.perceptual_heads)
    if name == 'ssim':
        return jax.jit(dissimilarity), {'distance': '1 - MS-SSIM'}
    variables = lpips.load(name, *given)
    # The weights are an argument: as constants they would be part of the program.
    compiled = jax.jit(functools.partial(lpips.lpips, net=name))
    published = lpips.NETS[name].backbone, lpips.NETS[name].heads
    places = [find(file, path) for file, path in zip(published, given, strict=True)]
    sums = {'weights_sha256': sha256(places[0]), 'heads_sha256': sha256(places[1])}
    told = {'distance': f'LPIPS {name} 0.1', 'weights': str(places[0]), **sums}
    return functools.partial(compiled, variables), told
