"""What scripts share: flags, a user's mistakes, tables, figures, what is kept of results."""

import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from absl import logging as absl_logging

from gen_jax.config import nearest
from gen_jax.errors import UserError, in_one_line, is_users
from gen_jax.runtime import config_file, workdir
from gen_jax.runtime.compilation import prepare

ROOT = Path(__file__).resolve().parents[1]
FLAGS = flags.FLAGS


def start(define: Callable[[], None], main: Callable[[], None]) -> None:
    """Runs a script as a command; a user's mistake ends in one line and exit code 2.

    Args:
      define: defines its flags: `define_run`, `define_config` and `define_rows` have those that
        several share.
      main: what it does, which finds its flags parsed.
    """
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    absl_logging.set_verbosity(absl_logging.FATAL)
    try:
        _read_flags(define)
        prepare()
        main()
    except (UserError, OSError) as error:
        if not is_users(error):
            raise
        print(f'{Path(sys.argv[0]).name}: {error}', file=sys.stderr, flush=True)
        sys.exit(2)


def _read_flags(define: Callable[[], None]) -> None:
    try:
        define()
        if {'-h', '--help'} & set(sys.argv):
            known = (FLAGS.module_help(module) for module in (sys.argv[0], __name__, config_file))
            print(sys.modules['__main__'].__doc__, *known, sep='\n')
            sys.exit()
        extra = FLAGS(sys.argv)[1:]
    except Exception as error:  # flags can be wrong in many a way
        raise UserError(in_one_line(error)) from None
    if extra:
        raise UserError(f'unexpected argument {extra[0]!r}: flags are written --name=value')


def compiled_in(folder: Path) -> dict[str, str]:
    """An environment whose processes keep compiled programs there, whatever this one's says."""
    theirs = 'JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE'
    rest = {name: value for name, value in os.environ.items() if name not in theirs}
    return rest | {'GEN_JAX_CACHE': str(folder)}


def define_run() -> None:
    """The flags of what is about a trained model."""
    define_config('edm_fashion_mnist')
    flags.DEFINE_string('workdir', None, 'The run (default: runs/CONFIG_VARIANT).')
    flags.DEFINE_string('step', None, 'The checkpoint: a number, or best (default: newest).')
    flags.DEFINE_integer('n', 1000, 'Samples of a row.', lower_bound=8)


def define_config(name: str) -> None:
    """The flag `config`: configs/NAME.py unless another is given."""
    # Configs begin from other configs; this folder is no package.
    sys.path.insert(0, str(ROOT))
    known = str(ROOT / f'configs/{name}.py')
    config_file.define_config(known, 'FILE[:variant]; fields: --config.a.b=1')


def define_rows() -> None:
    """The flags of what makes rows by name, and a figure of them."""
    flags.DEFINE_list('rows', [], 'Those to do, by name (default: all).')
    flags.DEFINE_bool('plot', True, 'Whether to draw a figure, which needs matplotlib.')


def chosen(known: Iterable[str], asked: list[str]) -> list[str]:
    """The names asked for in the order they are known in, all where none are; else a UserError."""
    for name in asked:
        if name not in known:
            raise UserError(f'--rows: no row {name!r}{nearest(name, known)}')
    return [name for name in known if not asked or name in asked]


def numbers(flag: str, kind: type = int, least: float = 1) -> tuple:
    """The numbers that a flag lists."""
    values = FLAGS[flag].value
    try:
        found = tuple(kind(value) for value in values)
    except ValueError:
        found = (least - 1,)
    if not all(least <= value < float('inf') for value in found):
        raise UserError(
            f'--{flag}={",".join(map(str, values))}: expected numbers of at least {least}'
        )
    return found


def folder(path: str) -> Path:
    """The folder of results, made where it is not there; UserError where a file is in its place."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f'--out={path}: expected a folder') from None
    return Path(path)


def file(path: str) -> Path:
    """The file of results, which may be there; UserError, before the work, where it cannot be.

    What goes beside it has its name and ends in .md.
    """
    if Path(path).suffix == '.md':
        raise UserError(f'--out={path}: expected the file of figures, a .json; the table is .md')
    if Path(path).is_dir() or not Path(path).parent.is_dir():
        raise UserError(f'--out={path}: expected a file in a folder that is there')
    return Path(path)


def told(values: list, digits: int) -> str:
    """Mean and standard deviation, of as many as there are."""
    if not values:
        return '-'
    spread = f' ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else ''
    return f'{np.mean(values):.{digits}f}{spread}'


def figure(columns: int, rows: int = 1, size: tuple = (6.5, 5)) -> tuple[Any, Any]:
    """An empty figure of matplotlib and its axes; UserError where that is missing.

    Args:
      columns, rows: of axes.
      size: width and height of one, inches.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        mend = 'pip install matplotlib, or leave the figure out with --noplot'
        raise UserError(f'matplotlib is missing, which draws the figure: {mend}') from None
    page = Figure((size[0] * columns, size[1] * rows), layout='constrained')
    return page, page.subplots(rows, columns)


def legends(axes) -> None:
    """One for each of the axes that has something to name."""
    for each in axes:
        if each.get_legend_handles_labels()[0]:
            each.legend(fontsize='small')


def write(path: Path, text: str, page=None) -> None:
    """Leaves a table, path.md, and a figure if there is one, path.png; prints the table."""
    path.with_suffix('.md').write_text(text)
    if page is not None:
        page.savefig(path.with_suffix('.png'), dpi=100)
    print(text)


class Rows:
    """Results by name, in a json that holds each and its settings as soon as it is there.

    Attributes:
      found: {name: row}.
    """

    def __init__(self, path: Path, asked: dict):
        """Reads what an earlier run left.

        Args:
          path: the file.
          asked: what all rows depend on, of JSON's types.

        Raises:
          UserError: the file holds rows of other settings.
        """
        self._path, self._asked, self._settings, self.found = path, asked, {}, {}
        if not path.exists():
            return
        have = {'settings': {}, **workdir.read_json(path)}
        if not all(isinstance(have.get(x), dict) for x in ('asked', 'settings', 'rows')):
            raise UserError(f'{path} holds no rows of a study: move it away')
        for name, value in asked.items():
            if (was := have['asked'].get(name)) != value:
                raise UserError(
                    f'{path} holds rows of other settings ({name} was {was!r}, is {value!r}): '
                    'move it away, or set that back'
                )
        self._settings = have['settings']
        self.found = {name: row for name, row in have['rows'].items() if name in self._settings}

    def __call__(self, name: str, settings: dict, make: Callable[[], dict]) -> dict:
        """The row of that name and of these settings, made where it is not there."""
        if not self.has(name, settings):
            self.found[name] = workdir.finite(make())
            self._settings[name] = workdir.finite(settings)
            found = {'asked': self._asked, 'settings': self._settings, 'rows': self.found}
            workdir.write_json(self._path, found)
        return self.found[name]

    def has(self, name: str, settings: dict) -> bool:
        """Whether there is a row of that name and of these settings, of JSON's types or tuples."""
        return name in self.found and self._settings[name] == workdir.finite(settings)

    def of(self, settings: dict[str, dict]) -> dict[str, dict]:
        """{name: row} of those that are there of {name: settings}, in its order."""
        return {name: self.found[name] for name, x in settings.items() if self.has(name, x)}


class Column(NamedTuple):
    """A column of a table: its heading, and what it says of a row."""

    heading: str
    cell: Callable[[Any], str]


def table(columns: Iterable[Column], rows: Iterable) -> str:
    """Markdown."""
    columns = list(columns)
    lines = [[c.heading for c in columns], ['---'] * len(columns)]
    lines += [[c.cell(row) for c in columns] for row in rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def table_of(headings: Iterable[str], lines: Iterable[list[str]]) -> str:
    """Markdown of lines of cells."""
    return table([Column(x, lambda line, i=i: line[i]) for i, x in enumerate(headings)], lines)
