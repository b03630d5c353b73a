"""The defaults that every config starts from, and the checks that run before anything compiles.

A config names things and sets numbers; it never computes. Each file of `configs/` calls
`default(METHOD)`, changes what differs, and offers variants by `vary`.
"""

import difflib
import importlib
import math
import re
from collections.abc import Iterable
from types import ModuleType

import ml_collections

from gen_jax.errors import UserError
from gen_jax.method import Method

# What every config's variant `tiny` starts from: a run of seconds.
TINY = {
    'steps': 4,
    'batch_size': 8,
    'log_every': 2,
    'sample_every': 4,
    'checkpoint_every': 2,
    'tensorboard': False,  # TensorFlow takes longer to import than such a run does
    'sample.n': 8,
    'sample.batch_size': 4,
    'sample.grid': 8,
    'eval.n': 16,
    'eval.every_n': 16,
}


def nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion such as ", did you mean 'steps'?", or the list of what is known."""
    known = sorted(known)
    # Of a tuple's items types are not known: they may be numbers.
    close = difflib.get_close_matches(str(word), known, n=1)
    return f', did you mean {close[0]!r}?' if close else f'; known are: {", ".join(known)}'


def method_module(name: str) -> ModuleType:
    """The module that makes a method: 'diffusion.gaussian' is gen_jax/diffusion/gaussian.py."""
    try:
        module = importlib.import_module(f'gen_jax.{name}')
    except ModuleNotFoundError as error:
        if not f'gen_jax.{name}'.startswith(error.name or '?'):
            raise
        module = None
    if not hasattr(module, 'defaults') or not hasattr(module, 'create'):
        raise UserError(
            f'config.method={name!r} is not a method of gen_jax; '
            "expected a path such as 'diffusion.gaussian'"
        )
    return module


def create(config: ml_collections.ConfigDict, guide: Method | None = None) -> Method:
    """The method that a config names, after every check that needs no data and no device.

    Args:
      config: of the model.
      guide: what guides its samples, as `gen_jax.guide` finds it, where `config.guide` names a run.

    Raises:
      UserError: bad config; or it names a run that guides, where nothing is guided.
    """
    validate(config, guide)
    if guide is not None:
        return method_module(config.method).create(config, guide)
    if named := guided_by(config):
        field = 'workdir' if config.guide.workdir else 'config'
        raise UserError(
            f"config.guide.{field}={named!r}: expected '' here, as a guide is for --mode=sample, "
            'evaluate and edit of a trained model; leave it out'
        )
    return method_module(config.method).create(config)


def guided_by(config: ml_collections.ConfigDict) -> str:
    """What guides samples, the folder of a run or the file of a config; '' where nothing does."""
    return (config.guide.workdir or config.guide.config) if 'guide' in config else ''


def default(method: str, **choices: str) -> ml_collections.ConfigDict:
    """Every field with its default: the house's own, then the method's `defaults()` on top.

    The result is typed: setting a field to a value of another type is an error where it happens.
    A field that does not exist is one in `validate`, or where a flag sets it.

    Args:
      method: such as 'diffusion.gaussian'.
      **choices: on which other fields depend, such as network='dit', for methods that name them in
        `CHOICES`, with the part whose fields they say. They are fields of the config themselves.
    """
    config = ml_collections.ConfigDict(
        {
            'method': method,
            'seed': 0,
            'steps': 1000,  # optimiser steps in all
            'batch_size': 64,  # images per step, over all devices and processes
            'accumulate': 1,  # parts that a batch passes through in turn, to need less memory
            'log_every': 100,  # steps between lines of metrics
            'sample_every': 500,  # steps between sample grids; 0: never
            'checkpoint_every': 500,  # steps between checkpoints; one more is written at the end
            'keep': 3,  # checkpoints kept, the newest ones
            'tensorboard': True,  # whether to write its events, where TensorFlow is installed
            # Published weights that a new run starts from: a file, or a folder of diffusers or of
            # a GAN's players (docs/diffusion.md, docs/gans.md)
            'init_from': '',
            'data': {
                'source': 'digits',  # digits, shapes, sprites, tfds:NAME, folder:PATH
                'split': 'train',  # what training reads
                'eval_split': 'test',  # what --mode=evaluate reads
                'image_size': 8,  # pixels; images are square
                'channels': 1,
                'num_classes': 0,  # labels are 0 .. num_classes-1; 0: labels are not used
                'fit': 'resize',  # how other sizes become image_size: resize (then crop), pad
                'crop': 1.0,  # least share of a side that is cut out at random; 1: the middle
                'flip': False,  # mirror half of the training images
                'tfds_dir': '',  # where TFDS keeps its files; '': its own default
                'threads': 2,  # reader threads of a process
                'prefetch': 4,  # batches read ahead
            },
            'mesh': {
                'data': -1,  # copies of the model, each with its share of the batch; -1: the rest
                'fsdp': 1,  # slices of parameters and optimiser state, batch split over them too
                'tensor': 1,  # slices of wide layers
                'rules': (),  # (regex on the parameter's path, axis name or None per dimension)
            },
            'sample': {
                'n': 64,  # images that --mode=sample makes
                'batch_size': 64,  # at a time; changes nothing but memory and speed
                'label': -1,  # the class to draw; -1: all in turn
                'format': 'png',  # png: a file each; npz: one file `samples.npz`
                'grid': 64,  # images in the grids
                'knobs': {},  # the sampler's traced numbers, such as eta and guidance
            },
            'edit': {
                # reconstruct, interpolate, inpaint, repaint, colorize, vary
                'task': 'reconstruct',
                'images': '',  # a folder of them; '': those of data.eval_split
                'n': 8,  # images to edit, the first ones
                'results': 4,  # of each: draws, or for interpolate points on the way to the next
                # Of inpaint and repaint, what is known: frame (all but the center), center, left,
                # right, top, bottom, lines, pixels (every second); or a PNG of the images' size,
                # white where they are known
                'mask': 'frame',
                'strength': 0.5,  # of vary: share of the steps to go through, more than 0 to 1
                'eta': 1.0,  # noise of the steps, as DDIM's; reconstruct and interpolate: none
                'jump': 10,  # of repaint: steps that are taken again together
                'repeats': 10,  # of repaint: how often, in all
            },
            'explore': {
                # interpolate, truncation, traverse, map, mixing, project, boundary, principal
                'task': 'interpolate',
                # Latents to begin with; of project, images; of principal and traverse, components.
                'rows': 8,
                'columns': 8,  # places on the way of each
                'space': 'w',  # of interpolate: z, or w
                # (first, beyond) of the layers that take other styles; (): of mixing the latter
                # half, of boundary and principal all
                'layers': (),
                # Of boundary, principal and traverse: standard deviations to each side.
                'spread': 3.0,
                'samples': 2000,  # latents that the mean of w and directions are found from
                'attribute': 'brightness',  # of boundary; or 'class:K', as eval.network sees it
                'images': '',  # of project: a folder of them; '': those of data.eval_split
                'steps': 500,  # of project
                'learning_rate': 0.1,  # of project
                'extended': False,  # of project: whether each layer has a w of its own
                'pixel_weight': 1.0,  # of the squared error, beside the distance eval.perceptual
            },
            'eval': {
                # per_example (what evaluate_step says of the eval split), reconstruction, rfid (of
                # it, encoded and decoded), probe, active_units (of its latents);
                # of samples: fid, sfid, kid, is, prdc, accuracy, modes, diversity, path_length
                'metrics': ('per_example',),
                'network': 'inception',  # that samples are seen through; or digits, fashion_mnist
                'weights': '',  # its file; '': the cache, or a download
                'resize': 'tf1',  # to Inception's size: tf1, pytorch_fid, clean, studiogan
                'dims': 2048,  # which of Inception's features: 2048, 768, 192, 64
                'reference': '',  # the real images: a split ('': data.split), or an .npz
                'n': 50_000,  # samples to judge
                'batch_size': 0,  # images at a time through the network; 0: what is fastest here
                # Between two images: ssim, or LPIPS over alex, vgg or squeeze
                'perceptual': 'ssim',
                'perceptual_weights': '',  # file of that network; '': the cache, or a download
                'perceptual_heads': '',  # file of LPIPS's linear heads; '': likewise
                'every': 0,  # steps between evaluations in training; 0: none
                'every_metrics': (),  # of them
                'every_n': 1000,  # samples of them
                'best': '',  # such as 'lowest fid_digits': whose checkpoint is kept in best/
            },
        }
    )
    with config.unlocked():
        config.update(method_module(method).defaults(**choices))
    return config


def vary(config: ml_collections.ConfigDict, variant: str, **variants: dict):
    """Applies one of a config's variants: `vary(config, 'tiny', tiny=TINY | {'seed': 1})`.

    Args:
      config: the config, changed in place; it is the variant '' itself.
      variant: what stood after the colon in `--config=FILE:VARIANT`.
      **variants: for each name, {'dotted.field': value}.
    """
    if variant and variant not in variants:
        raise UserError(f'unknown variant {variant!r}{nearest(variant, variants)}')
    config.update_from_flattened_dict(variants.get(variant, {}))
    return config


def require(ok: bool, field: str, value, expected: str) -> None:
    """Raises the UserError that a bad config value deserves."""
    if not ok:
        raise UserError(f'config.{field}={value!r}: expected {expected}')


def require_least(room: str, config, **least: int) -> None:
    """Raises the UserError of whole numbers below their least.

    Args:
      room: of the config's fields, such as 'model'.
      config: that part.
      **least: name=least.
    """
    for name, n in least.items():
        value = config[name]
        require(value >= n, f'{room}.{name}', value, f'a whole number of at least {n}')


def require_weights(room: str, config, *names: str) -> None:
    """Raises the UserError of numbers below 0, or infinite; args as of `require_least`."""
    for name in names:
        value = config[name]
        require(0 <= value < math.inf, f'{room}.{name}', value, '0 or more, and finite')


def require_known(room: str, config, **known: Iterable[str]) -> None:
    """Raises the UserError of names that are not known: name=known; args as of `require_least`."""
    for name, names in known.items():
        value = config[name]
        require(value in names, f'{room}.{name}', value, f'a known name{nearest(value, names)}')


def are_whole(values: Iterable) -> bool:
    """Whether what a config's tuple holds, if anything, are whole numbers of at least 1."""
    return all(isinstance(x, int) and x >= 1 for x in values)


def are_positive(values: Iterable) -> bool:
    """Whether what a config's tuple holds, if anything, are numbers above 0."""
    return all(isinstance(x, int | float) and x > 0 for x in values)


def are_ends(values: tuple) -> bool:
    """Whether a config's tuple is two finite numbers, the first 0 or more and below the second."""
    numbers = len(values) == 2 and all(isinstance(x, int | float) for x in values)
    return numbers and 0 <= values[0] < values[1] < math.inf  # which JSON has not


def require_average(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where the moving average of weights cannot be as `ema_*` says."""
    require(0 <= config.ema_decay < 1, 'ema_decay', config.ema_decay, '0 (none) or more, below 1')
    for field in ('ema_rampup', 'ema_start'):
        value = config.get(field, 0)
        require(0 <= value < math.inf, field, value, '0 or more, and finite')


def require_unlabelled(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where the data has classes: this method is told none."""
    n = config.data.num_classes
    require(n == 0, 'data.num_classes', n, f'0: {config.method} is told no labels')


def defaults_of(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of the same method and choices in which all else has its default."""
    _require_there(config, ['method'])
    choices = getattr(method_module(config.method), 'CHOICES', {})
    _require_there(config, choices)
    return default(config.method, **{name: config[name] for name in choices})


def validate(config: ml_collections.ConfigDict, guide: Method | None = None) -> None:
    """Checks what can be checked without data or devices, and but for the guide's run."""
    known = defaults_of(config)
    _same_fields(config, known, '', getattr(method_module(config.method), 'CHOICES', {}))
    require(0 <= config.seed < 2**31, 'seed', config.seed, 'a whole number from 0 to 2**31 - 1')
    for field in ('steps', 'batch_size', 'accumulate', 'log_every', 'checkpoint_every', 'keep'):
        require(config[field] >= 1, field, config[field], 'a whole number of at least 1')
    b = config.batch_size
    expected = f'a number that divides config.batch_size={b}'
    require(b % config.accumulate == 0, 'accumulate', config.accumulate, expected)
    require(config.sample_every >= 0, 'sample_every', config.sample_every, '0 or more')
    data, sample = config.data, config.sample
    for field in ('image_size', 'channels', 'threads', 'prefetch'):
        require(data[field] >= 1, f'data.{field}', data[field], 'a whole number of at least 1')
    require(data.num_classes >= 0, 'data.num_classes', data.num_classes, '0 or more')
    require(data.fit in ('resize', 'pad'), 'data.fit', data.fit, "'resize' or 'pad'")
    require(0 < data.crop <= 1, 'data.crop', data.crop, 'above 0, at most 1')
    expected = "1 where config.data.fit='pad', which crops nothing"
    require(data.crop == 1 or data.fit == 'resize', 'data.crop', data.crop, expected)
    for field in ('n', 'batch_size', 'grid'):
        require(sample[field] >= 1, f'sample.{field}', sample[field], 'a whole number >= 1')
    require(sample.format in ('png', 'npz'), 'sample.format', sample.format, "'png' or 'npz'")
    classes = data.num_classes or (guide.num_classes if guide else 0)
    require(
        sample.label == -1 or 0 <= sample.label < classes,
        'sample.label',
        sample.label,
        f'-1 (all in turn) or a class below data.num_classes={classes}',
    )
    _check_eval(config.eval)
    for axis in ('data', 'fsdp', 'tensor'):
        size = config.mesh[axis]
        require(size >= 1 or (axis, size) == ('data', -1), f'mesh.{axis}', size, 'at least 1')
    _check_rules(config.mesh.rules)
    _check_optimizer(config.optimizer)


def _check_eval(options) -> None:
    for field in ('n', 'every_n'):
        require(options[field] >= 2, f'eval.{field}', options[field], 'at least 2 images')
    require(options.batch_size >= 0, 'eval.batch_size', options.batch_size, '0 or more')
    require(options.every >= 0, 'eval.every', options.every, '0 (never) or more')
    require(
        bool(options.every) == bool(options.every_metrics),
        'eval.every_metrics',
        options.every_metrics,
        'some where eval.every is set, and () where it is 0',
    )
    best = options.best
    expected = "'lowest NAME' or 'highest NAME', and eval.every > 0; or ''"
    well_formed = re.fullmatch(r'(lowest|highest) \w+', best) and options.every
    require(not best or well_formed, 'eval.best', best, expected)


def _check_rules(rules: tuple) -> None:
    example = "(('conv_?[0-9]/kernel', (None, None, None, 'fsdp')),)"
    expected = f'((regex, (axis or None, ...)), ...), such as {example}'
    try:
        for pattern, spec in rules:
            re.compile(pattern)
            tuple(spec)
    except (re.error, TypeError, ValueError) as error:
        raise UserError(f'config.mesh.rules={rules!r} ({error}): expected {expected}') from None


def _check_optimizer(optimizer) -> None:
    def check(field, ok, expected):
        require(ok(optimizer[field]), f'optimizer.{field}', optimizer[field], expected)

    for field in ('learning_rate', 'eps'):
        check(field, lambda x: 0 < x < math.inf, 'a positive number, and finite')
    for field in ('warmup', 'weight_decay', 'clip'):
        check(field, lambda x: 0 <= x < math.inf, '0 or more, and finite')
    for field in ('b1', 'b2'):
        check(field, lambda x: 0 <= x < 1, 'at least 0 and below 1')
    check('decay', lambda x: x in ('cosine', 'linear'), "'cosine' or 'linear'")
    warmup = optimizer.warmup
    expected = f'0 (constant), or more than optimizer.warmup={warmup}'
    check('decay_steps', lambda x: x == 0 or x > warmup, expected)


def _same_fields(config, known, prefix: str, choices: dict) -> None:
    for name in config:
        if name not in known:
            chosen = [
                f'; default(METHOD, {x}=...) chooses it'
                for x, part in choices.items()
                if prefix == f'{part}.'
            ]
            close = nearest(name, known)
            raise UserError(f'unknown field config.{prefix}{name}{close}{"".join(chosen)}')
    _require_there(config, known, prefix)
    for name in known:
        if isinstance(known[name], ml_collections.ConfigDict):
            _same_fields(config[name], known[name], f'{prefix}{name}.', choices)


def _require_there(config, names: Iterable[str], prefix: str = '') -> None:
    for name in names:
        if name not in config:
            raise UserError(f'config.{prefix}{name} is not there: start from default(METHOD)')
