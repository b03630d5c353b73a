"""Checkpoints: (state, data iterator, step), written by Orbax, asynchronous and atomic."""

import contextlib
import hashlib
import logging
import re
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from gen_jax.errors import UserError

Args = ocp.args
MARGIN = 1 << 20  # bytes of a checkpoint beside its arrays: metadata, file system blocks


class Checkpoints:
    """The checkpoints of one run, newest first.

    A checkpoint appears under its step's name only when it is whole, so a run killed while it
    saves leaves the ones before it untouched.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        """Opens `folder`; with `keep`, makes it and keeps that many; without, only reads."""
        self._folder = Path(folder).absolute()
        if keep is None and not self._folder.is_dir():
            raise UserError(
                f'no checkpoints in {self._folder}: train first (--mode=train, same --workdir)'
            )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=keep is not None,
            read_only=keep is None,
            cleanup_tmp_directories=keep is not None,
        )
        self._handlers = {
            'state': ocp.PyTreeCheckpointHandler(),
            'data': ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            self._folder, options=options, item_handlers=self._handlers
        )

    def save(self, step: int, state, data: dict) -> None:
        """Starts to write; returns as soon as the state may be overwritten."""
        if step not in self._manager.all_steps():
            args = Args.Composite(state=Args.PyTreeSave(state), data=Args.JsonSave(data))
            with self._told_if_full():
                self._manager.wait_until_finished()  # for the free space to be what is left
                self._check_room(state)
                self._manager.save(step, args=args)

    def restore(self, state, step: int | None = None):
        """The newest checkpoint that is whole, or that of `step`.

        Args:
          state: a pytree of ShapeDtypeStructs with shardings, which may differ from those it was
            saved with. Where it has None nothing is read, whatever the checkpoint has there.
          step: take this one and no other.

        Returns:
          (step, state, data), or None where there is no checkpoint at all.

        Raises:
          UserError: the checkpoint holds another state than asked for, none is readable, or
            processes see other steps.
        """
        steps = self._steps()
        if step is not None and step not in steps:
            raise UserError(
                f'no checkpoint of step {step} in {self._folder}; there are: {sorted(steps)}'
            )
        tried = steps if step is None else [step]
        for candidate in tried:
            found, reason = self._read_or_why(candidate, state)
            # One process may find a part damaged that others have no need of.
            if multihost_utils.process_allgather(np.bool_(found is not None)).all():
                return candidate, *found
            del found  # its memory is the next one's
            logging.warning(
                'checkpoint %s is damaged (%.160s)',
                self._folder / str(candidate),
                reason or 'another process cannot read it',
            )
        if not tried:
            return None
        if step is not None:
            raise UserError(
                f'checkpoint {self._folder / str(step)} is damaged: take another, of {steps}'
            )
        raise UserError(
            f'no readable checkpoint in {self._folder} (tried steps {tried}): restore the folder '
            'from a copy, or start anew with another --workdir'
        )

    def set_aside_after(self, step: int) -> None:
        """Renames what is newer than `step` to damaged_*: the run will write these steps again."""
        for later in [s for s in self._manager.all_steps() if s > step]:
            if jax.process_index() == 0:
                place = self._folder / str(later)
                place.rename(self._folder / f'damaged_{later}_{time.time_ns()}')
        multihost_utils.sync_global_devices('set aside')
        self._manager.reload()

    def wait(self) -> None:
        """Waits until what `save` began is on disk."""
        with self._told_if_full():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk."""
        self.wait()
        with self._told_if_full():
            self._manager.close()

    def _steps(self) -> list[int]:
        """Those that there are, the newest first.

        Raises:
          UserError: processes see others.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        told = multihost_utils.process_allgather(
            np.array([len(steps), sum(steps) % 2**31], np.int32)
        )
        if not (told.reshape(-1, 2) == told.reshape(-1, 2)[0]).all():
            raise UserError(
                f'processes see other checkpoints in {self._folder}, this one {steps}: put '
                '--workdir on a disk that all of them mount'
            )
        return steps

    def _read_or_why(self, step: int, state) -> tuple:
        """((state, data), None) of a checkpoint, or (None, what is wrong with it)."""
        try:
            saved = self._manager.item_metadata(step)['state'].tree
            self._check_same(saved, state, step)
            return self._read(step, state), None
        except (UserError, MemoryError, PermissionError):
            raise
        # Orbax raises whatever the broken part led to: ValueError, KeyError, OSError, ...
        except Exception as error:
            if 'RESOURCE_EXHAUSTED' in str(error):
                raise
            return None, str(error).splitlines()[0] if str(error) else type(error).__name__

    def _read(self, step: int, state) -> tuple:
        """(state, data). No process waits for another, as the manager would have it do."""
        place, asked = epath.Path(self._folder / str(step)), _asked(state)
        return tuple(
            handler.restore(place / name, args=asked[name])
            for name, handler in self._handlers.items()
        )

    def _check_room(self, state) -> None:
        # Asked beforehand, because Orbax's writing threads print a traceback each when they fail.
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < size + MARGIN:
            raise UserError(f'{self._full} ({size:,} bytes and {MARGIN:,} beside; {free:,} free)')

    @property
    def _full(self) -> str:
        return (
            f'cannot write to {self._folder}: No space left on its disk; the checkpoints '
            'before this one are whole, so make room and run the same command again'
        )

    @contextlib.contextmanager
    def _told_if_full(self):
        try:
            yield
        # The disk's answer comes through several libraries, each with its own exception.
        except Exception as error:
            text = str(error)
            # ENOSPC and EDQUOT, as tensorstore tells them.
            if not re.search(r"No space left|Quota|os_error_code='(28|122)'", text):
                raise
            raise UserError(self._full) from None

    def _check_same(self, saved, state, step: int) -> None:
        have, want = _leaves(saved), _leaves(state)
        unread = tuple(f'{name}/' for name, told in want.items() if not told)
        different = [
            f'{name}: checkpoint {have.get(name) or "has none"}, '
            f'config {want.get(name) or "has none"}'
            for name in dict.fromkeys([*want, *have])
            if have.get(name, '') != want.get(name, '') and not f'{name}/'.startswith(unread)
        ]
        if different:
            more = f' (and {len(different) - 3} more)' if len(different) > 3 else ''
            raise UserError(
                f'checkpoint {self._folder / str(step)} was made by another config: '
                f'{"; ".join(different[:3])}{more}; use its own config or another --workdir'
            )


def _asked(state) -> Args.Composite:
    shardings = ocp.checkpoint_utils.construct_restore_args(state)
    return Args.Composite(
        state=Args.PyTreeRestore(state, shardings, partial_restore=True), data=Args.JsonRestore()
    )


def _leaves(tree) -> dict[str, str]:
    """{path: dtype and shape}, which of None are ''."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)[0]
    return {
        '/'.join(str(getattr(k, 'name', getattr(k, 'key', getattr(k, 'idx', k)))) for k in path): (
            '' if leaf is None else f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
        )
        for path, leaf in leaves
    }


def fingerprint(state) -> str:
    """SHA-256 over every leaf's path, dtype, shape and bytes: equal states, equal fingerprints."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        leaf = np.asarray(leaf)
        digest.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()
