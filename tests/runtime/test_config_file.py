"""A config file is its user's code: what is wrong with it is told by the file's name."""

import pytest

from gen_jax.config import default
from gen_jax.errors import UserError, in_one_line
from gen_jax.runtime.config_file import ConfigFile

MAKES = """
from __future__ import annotations
import dataclasses
from gen_jax.config import default

@dataclasses.dataclass
class Numbers:
    steps: int = 7

def get_config(variant='plain'):
    config = default('diffusion.gaussian')
    config.steps, config.data.source = Numbers().steps, variant
    return config
"""


def write(folder, body):
    file = folder / 'mine.py'
    file.write_text(body)
    return file


@pytest.mark.parametrize(
    ('ending', 'variant'), [('', 'plain'), (':', ''), (':tiny', 'tiny'), (':a:b', 'a:b')]
)
def test_the_config_of_a_variant(tmp_path, ending, variant):
    config = ConfigFile().parse(f'{write(tmp_path, MAKES)}{ending}')
    assert config.steps == 7
    assert config.data.source == variant
    assert config.is_locked


GETS = 'def get_config(variant=""):\n  '
SETS = 'from gen_jax.config import default\n' + GETS + 'config = default("diffusion.gaussian")\n  '


@pytest.mark.parametrize(
    ('body', 'says'),
    [
        (f'{GETS}pass', 'get_config returns NoneType, expected a config as'),
        (f'{GETS}return {{"seed": 0}}', 'get_config returns dict, expected a config as'),
        ('x = 1', "AttributeError: module 'config_file' has no attribute 'get_config'"),
        ('def get_config(): pass', 'TypeError: get_config() takes 0 positional arguments but 1'),
        ('import nosuchmod', "ModuleNotFoundError: No module named 'nosuchmod'"),
        ('def get_config(', "SyntaxError: '(' was never closed"),
        (f'{GETS}raise ValueError("two\\nlines")', 'ValueError: two lines'),
        (f'{GETS}raise RuntimeError', 'RuntimeError'),
        (
            f'{GETS}open("/no/such/file")',
            "FileNotFoundError: [Errno 2] No such file or directory: '",
        ),
        (f'{GETS}return {{}}["seed"]', "KeyError: 'seed'"),
        (f'{GETS}return None.seed', "AttributeError: 'NoneType' object has no attribute 'seed'"),
        (f'{SETS}config.steps = "many"', "TypeError: Could not override field 'steps'"),
        (
            f'{SETS}config.steps = config.batchsize',
            "the config has no field batchsize, did you mean 'batch_size'?",
        ),
    ],
)
def test_what_a_file_raises_is_told_by_its_name(tmp_path, body, says):
    named = f'{write(tmp_path, body)}:tiny'
    with pytest.raises(UserError) as error:
        ConfigFile().parse(named)
    assert str(error.value).startswith(f'--config={named}: {says}')
    assert '\n' not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r'no\.py is no file; expected FILE or FILE:VARIANT'):
        ConfigFile().parse(f'{tmp_path}/no.py')


def test_a_files_own_user_errors_stay_as_they_are(tmp_path):
    raises = 'from gen_jax.errors import UserError\nraise UserError("no variant tinny")'
    with pytest.raises(UserError, match=r'^no variant tinny$'):
        ConfigFile().parse(str(write(tmp_path, raises)))


@pytest.mark.parametrize(
    ('change', 'field'),
    [
        (lambda config: config.batchsize, 'batchsize, did you mean'),
        (lambda config: config['batchsize'], 'batchsize, did you mean'),
        (lambda config: config.update_from_flattened_dict({'data.sorce': 1}), 'sorce, did you'),
        (lambda config: config.update_from_flattened_dict({'qqq.x': 1}), 'qqq.x'),
        (lambda config: config.update_from_flattened_dict({'seed.x': 1}), 'seed.x'),
        (lambda config: config.qqq, 'qqq'),
    ],
)
def test_a_field_that_a_config_lacks_is_told_without_the_librarys_words(change, field):
    config = default('diffusion.gaussian').lock()
    with pytest.raises((KeyError, AttributeError)) as error:
        change(config)
    told = in_one_line(error.value)
    assert told.startswith(f'the config has no field {field}')
    assert len(told) < 70
