"""The flag --config: a file that makes a config, and is its user's own code."""

import importlib.util
import os
import sys
from importlib.machinery import SourceFileLoader

import ml_collections
from absl import flags
from ml_collections import config_flags

from gen_jax.errors import UserError, in_one_line


def define_config(default: str, text: str) -> None:
    """Defines --config=FILE[:variant], and --config.FIELD=VALUE of its fields.

    Args:
      default: the file where none is given; one that loads.
      text: for --help.
    """
    config_flags.DEFINE_config_file('config', default, text)
    # ml_collections' own tells a mistake in a file by its traceback, or not by the file's name.
    flags.FLAGS['config'].parser = ConfigFile()


class ConfigFile(flags.ArgumentParser):
    """Reads what --config names."""

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        """The config, locked, that `get_config` of FILE makes of a variant.

        Args:
          argument: FILE, or FILE:VARIANT.

        Raises:
          UserError: the file's own, or one that names the file where it cannot be run or makes no
            config.
        """
        file, *variant = argument.split(':', 1)
        if not os.path.isfile(file):
            raise UserError(
                f'--config={argument}: {file} is no file; expected FILE or FILE:VARIANT, such as '
                'configs/ddpm_digits.py'
            )
        loader = SourceFileLoader('config_file', file)
        spec = importlib.util.spec_from_loader(loader.name, loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[loader.name] = module  # where dataclasses look for their own
        try:
            loader.exec_module(module)
            config = module.get_config(*variant)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f'--config={argument}: {in_one_line(error)}') from None
        if not isinstance(config, ml_collections.ConfigDict):
            raise UserError(
                f'--config={argument}: get_config returns {type(config).__name__}, expected a '
                'config as gen_jax.config.default(METHOD) makes it'
            )
        config.lock()
        return config
