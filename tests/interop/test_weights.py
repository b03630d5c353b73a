import hashlib
import io
import logging
import threading
import urllib.error
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gen_jax.errors import UserError
from gen_jax.interop import weights
from gen_jax.interop.weights import WeightsFile, cache_folder, find, sha256

CONTENT = b'weights' * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = WeightsFile('net.pth', 'https://example.org/net-v1.pth', DIGEST, 'for research only')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no network: a test that wants one says so."""
    monkeypatch.setenv('GEN_JAX_WEIGHTS', str(tmp_path / 'cache'))
    monkeypatch.setattr(weights, '_open', lambda url: pytest.fail(f'asked for {url}'))
    return tmp_path / 'cache'


def serve(monkeypatch, content):
    """Answers with `content`, or raises it; returns the list of what was asked for."""
    asked = []

    def answer(url):
        asked.append(url)
        if isinstance(content, Exception):
            raise content
        return io.BytesIO(content)

    monkeypatch.setattr(weights, '_open', answer)
    return asked


def refused(says, *args, **kwargs):
    with pytest.raises(UserError, match=says) as error:
        find(*args, **kwargs)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_sha256_is_that_of_the_standard(tmp_path):
    """The two examples of FIPS 180: 'abc', and a million times 'a'."""
    (tmp_path / 'x').write_bytes(b'abc')
    assert sha256(tmp_path / 'x').startswith('ba7816bf8f01cfea414140de5dae2223b00361a3')
    (tmp_path / 'x').write_bytes(b'a' * 1_000_000)
    assert sha256(str(tmp_path / 'x')).endswith('cc7112cd0')


def test_a_given_path_is_taken_with_any_checksum(tmp_path, monkeypatch):
    own = tmp_path / 'own.safetensors'
    own.write_bytes(b'converted')
    assert find(FILE, str(own)) == own
    (tmp_path / FILE.name).write_bytes(b'other')
    assert find(FILE, str(tmp_path)) == tmp_path / FILE.name
    monkeypatch.setenv('HOME', str(tmp_path))
    assert find(FILE, '~/own.safetensors') == own


def test_a_given_path_that_is_not_there(tmp_path, cache):
    cache.mkdir()
    (cache / FILE.name).write_bytes(CONTENT)  # not a stand-in for what was asked for
    refused(r'nowhere\.pth not found: expected net\.pth', FILE, str(tmp_path / 'nowhere.pth'))
    refused(r'net\.pth not found: .* a folder that holds it', FILE, str(tmp_path))
    for path in ('~nosuchuser/x', 'a' * 300):
        refused(f'{path} not found', FILE, path)


def test_the_cache_comes_before_the_network(cache):
    cache.mkdir()
    (cache / FILE.name).write_bytes(CONTENT)
    assert find(FILE) == cache / FILE.name
    assert find(FILE._replace(sha256=DIGEST[:8])) == cache / FILE.name


@pytest.mark.parametrize('expected', ['0' * 64, '00000000', DIGEST[1:]])
def test_a_wrong_checksum_in_the_cache(expected, cache):
    cache.mkdir()
    (cache / FILE.name).write_bytes(CONTENT)
    says = f'{FILE.name} has SHA-256 {DIGEST}, expected {expected}: delete it'
    refused(says, FILE._replace(sha256=expected))


def test_a_download_is_kept(cache, monkeypatch):
    asked = serve(monkeypatch, CONTENT)
    for _ in range(2):
        assert find(FILE).read_bytes() == CONTENT
    assert asked == [FILE.url]
    assert [path.name for path in cache.iterdir()] == [FILE.name]


@pytest.mark.parametrize('content', [b'', CONTENT[:-1], b'<html>'])
def test_a_wrong_download_does_not_appear(content, cache, monkeypatch):
    serve(monkeypatch, content)
    says = f'{FILE.url} sent SHA-256 {hashlib.sha256(content).hexdigest()}, expected {DIGEST}'
    refused(says, FILE)
    assert list(cache.iterdir()) == []


class Interrupted(io.BytesIO):
    def read(self, *args):
        if self.tell():
            raise TimeoutError('timed out')
        return super().read(100)


@pytest.mark.parametrize(
    'failure',
    [urllib.error.URLError('no route to host'), TimeoutError('timed out'), None],
)
def test_offline_one_line_says_what_to_fetch(failure, cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(weights, '_open', lambda url: Interrupted(CONTENT))
    if failure:
        serve(monkeypatch, failure)
    text = refused('no route|timed out', FILE, hint='--weights=FILE')
    assert bool(caplog.messages) == (not failure)  # once something comes
    for part in (FILE.name, FILE.url, FILE.note, str(cache), '--weights=FILE'):
        assert part in text
    assert list(cache.iterdir()) == []
    assert 'or say where' not in refused('fetch', FILE)


def test_a_cache_folder_that_cannot_be_one(cache):
    cache.write_text('')
    refused('cannot be downloaded .*exists', FILE)


def test_a_full_disk_is_not_called_a_network(monkeypatch):
    serve(monkeypatch, OSError(28, 'No space left on device'))
    with pytest.raises(OSError, match='No space left'):
        find(FILE)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert cache_folder() == tmp_path / 'cache'
    monkeypatch.setenv('GEN_JAX_WEIGHTS', '')
    assert cache_folder() == tmp_path / 'xdg' / 'gen_jax' / 'weights'
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert cache_folder() == tmp_path / '.cache' / 'gen_jax' / 'weights'


def test_only_https_is_asked(tmp_path, monkeypatch):
    """A server without TLS gets no request, and neither does a file."""
    monkeypatch.undo()
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

    server = HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / 'x').write_bytes(CONTENT)
    try:
        for url in (f'http://127.0.0.1:{server.server_port}/x', (tmp_path / 'x').as_uri()):
            with pytest.raises(urllib.error.URLError, match='unknown url type'):
                weights._open(url)
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []
