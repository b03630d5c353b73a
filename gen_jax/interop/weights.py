"""Finding files of weights: a path given, else the cache, else a download with a fixed checksum."""

import contextlib
import contextvars
import hashlib
import http.client
import logging
import os
import shutil
import urllib.request
import uuid
from pathlib import Path
from typing import NamedTuple

from gen_jax.errors import UserError, is_users

TIMEOUT = 10  # seconds without an answer
_READ = contextvars.ContextVar('read', default=True)


@contextlib.contextmanager
def shapes_only():
    """Within it weights that a loss takes are zeros, without their files: all that a plan needs."""
    token = _READ.set(False)
    try:
        yield
    finally:
        _READ.reset(token)


def are_read() -> bool:
    """Whether weights are read: not within `shapes_only`."""
    return _READ.get()


class WeightsFile(NamedTuple):
    """A published file of weights.

    Attributes:
      name: of the file, in the cache and in a folder given.
      url: where it is fetched from, https.
      sha256: its SHA-256 in lower-case hex, all 64 digits; or the first digits, 8 at least, where
        its publisher tells no more, as in the names of torch's files. 8 digits tell damage, not
        malice.
      note: what to know before fetching it, such as a licence; shown where that is left to the
        user.
    """

    name: str
    url: str
    sha256: str
    note: str = ''


def find(file: WeightsFile, path: str = '', hint: str = '') -> Path:
    """Where the file is on this machine, downloaded into the cache folder if need be.

    Args:
      file: what to find.
      path: the file, or a folder that holds `file.name`; taken as it is, whatever its checksum.
        '' looks into the cache folder, and what is there must have the right checksum.
      hint: how a user gives `path`, such as '--weights=FILE', for errors.

    Raises:
      UserError: no file at `path`, a wrong checksum, or a server that cannot be reached.
    """
    if path:
        return _given(file, Path(os.path.expanduser(path)))
    place = cache_folder() / file.name
    if not place.is_file():
        _download(file, place, hint)
    elif not (found := sha256(place)).startswith(file.sha256):
        raise UserError(
            f'{place} has SHA-256 {found}, expected {file.sha256}: delete it and run again'
        )
    return place


def cache_folder() -> Path:
    """$GEN_JAX_WEIGHTS, else $XDG_CACHE_HOME/gen_jax/weights, else ~/.cache/gen_jax/weights."""
    if folder := os.environ.get('GEN_JAX_WEIGHTS'):
        return Path(folder)
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(cache, 'gen_jax', 'weights')


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, 64 digits of lower-case hex; read in blocks."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _given(file: WeightsFile, path: Path) -> Path:
    place = path / file.name if os.path.isdir(path) else path
    if not os.path.isfile(place):
        raise UserError(f'{place} not found: expected {file.name}, or a folder that holds it')
    return place


def _download(file: WeightsFile, place: Path, hint: str) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _fetch(file, place)
    except (OSError, http.client.HTTPException) as error:
        if is_users(error):
            raise
        raise UserError(_fetch_by_hand(file, place, hint, error)) from None


def _fetch(file: WeightsFile, place: Path) -> None:
    """The file appears at `place` whole and with the right checksum, or not at all."""
    part = place.with_name(f'{file.name}.{uuid.uuid4().hex}.part')
    try:
        with _open(file.url) as source, part.open('wb') as target:
            logging.info('downloading %s', file.url)
            shutil.copyfileobj(source, target, 1 << 20)
        if not (found := sha256(part)).startswith(file.sha256):
            raise UserError(f'{file.url} sent SHA-256 {found}, expected {file.sha256}: try again')
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)


def _fetch_by_hand(file: WeightsFile, place: Path, hint: str, error: Exception) -> str:
    reason = ' '.join(str(error).split())
    note = f' ({file.note})' if file.note else ''
    other = f', or say where it is with {hint}' if hint else ''
    return (
        f'{file.name} is not in {place.parent} and cannot be downloaded ({reason}): '
        f'fetch {file.url}{note} into that folder{other}'
    )


def _open(url: str) -> http.client.HTTPResponse:
    """Opens an https address; with no handler for http, redirects cannot leave https either."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={'User-Agent': 'gen_jax'})
    return opener.open(request, timeout=TIMEOUT)
