"""Images in folders."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from gen_jax.config import nearest
from gen_jax.data import fitting
from gen_jax.errors import UserError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')
# Decoding this many images takes seconds at most; more of them wait for training to find the fault.
FULLY_CHECKED = 2000
# What others call the split that is 'test' here.
HELD_OUT = ('val', 'valid', 'validation', 'eval')


class Folder:
    """The images of a folder, in the order of their sorted paths.

    PATH/CLASS/*.png makes a class of each folder, numbered in sorted order; PATH/*.png is
    unlabelled. Where both PATH/train and PATH/test exist, each split is the folder of its name
    (of one layout), and the classes are those of PATH/train. Elsewhere all of it is 'train'; a
    PATH/train that is the only folder, or has val, valid, validation or eval beside it, is taken
    for a split that lacks its test, and refused. Files ending in .png, .jpg, .jpeg and .webp are
    read, and no others; names that start with a dot are skipped. `fitting` says how colours and
    sizes are brought in line.

    Example i has image, uint8 [size, size, channels], and label, int (0 where unlabelled).

    Attributes:
      num_classes: the number of class folders; 0 where unlabelled.
      classes: their names.
      folder: of the split.
    """

    def __init__(self, path: str, split: str, image_size: int, channels: int, fit: str):
        """Lists the folder, and reads every image's header; decodes all of up to 2,000 images.

        Raises:
          UserError: the path, split or class does not exist or is empty, or a file is broken.
        """
        # Of a user or a name that cannot be, pathlib raises; these leave it as it is.
        root = Path(os.path.expanduser(path))
        if not os.path.isdir(root):
            raise UserError(
                f'folder:{path} is not a folder: point config.data.source at one with '
                'CLASS/*.png or *.png in it'
            )
        folder, classes = _split_folder(root, split), class_names(root)
        self.num_classes, self.classes, self.folder = len(classes), classes, folder
        self._items = _labelled(folder, classes) if classes else [(p, 0) for p in _images(folder)]
        self._size, self._channels, self._fit = image_size, channels, fit
        check_images([path for path, _ in self._items])

    @property
    def described(self) -> str:
        """Names of files and their labels: equal folders, equal texts."""
        parts = ((Path(path).parts[-2:], label) for path, label in self._items)
        return '\n'.join(f'{"/".join(names)} {label}' for names, label in parts)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> dict:
        image, label = self._decoded(i)
        return {'image': fitting.fit_image(image, self._size, self._fit), 'label': label}

    def cropped(self, indices, least: float, crops) -> list[dict]:
        """Examples of which a part is shown (see `fitting.crop_image`)."""
        return fitting.cropped(map(self._decoded, indices), self._size, least, crops)

    def _decoded(self, i: int) -> tuple[np.ndarray, int]:
        path, label = self._items[i]
        return fitting.decode(path, path, self._channels), label

    def labels(self) -> np.ndarray:
        """Those of all images; none is read."""
        return np.array([label for _, label in self._items])


def check_images(paths: list[str]) -> None:
    """Reads every file's header, and decodes up to 2,000 files, all if there are no more.

    A truncated file among more than 2,000 is thus found when it is read, and named then.

    Raises:
      UserError: names the first broken file.
    """
    for path in paths:
        try:
            Image.open(path).close()
        except Exception as error:  # see fitting.decode
            raise UserError(
                f'{path} is not an image Pillow can read: replace or delete it'
            ) from error
    if len(paths) <= FULLY_CHECKED:
        for path in paths:
            fitting.decode(path, path, 1)


def _split_folder(root: Path, split: str) -> Path:
    if (root / 'train').is_dir() and (root / 'test').is_dir():
        splits = {p.name for p in _folders(root)}
        if split not in splits:
            raise UserError(f'folder:{root} has no split {split!r}{nearest(split, splits)}')
        return root / split
    _check_not_splits(root)
    if split != 'train':
        raise UserError(
            f'folder:{root} has no split {split!r}, only train: '
            f"make {root}/train and {root}/test, or set config.data.eval_split='train'"
        )
    return root


def _check_not_splits(root: Path) -> None:
    """Raises UserError where `root` seems to hold splits, but lacks its test."""
    names = [p.name for p in _folders(root)]
    if 'train' not in names:
        return
    other = next((name for name in HELD_OUT if name in names), None)
    if other:
        raise UserError(
            f'{root} has train and {other}, expected train and test: rename {other} to test'
        )
    if names == ['train']:
        raise UserError(
            f'{root} has train alone, expected train and test: make {root}/test, or set '
            f"config.data.source=folder:{root}/train and config.data.eval_split='train'"
        )


def class_names(root: Path) -> list[str]:
    """Class names in label order; those of `train` hold for all splits, lest numbers shift."""
    return [p.name for p in _folders(_split_folder(root, 'train'))]


def _labelled(folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    found, stray = [p.name for p in _folders(folder)], _listed(folder)
    if stray and found:
        raise UserError(
            f'{folder} holds both class folders and images ({Path(stray[0]).name}): '
            'move the images into class folders, or all of them into one folder'
        )
    for name in found:
        if name not in classes:
            raise UserError(
                f'{folder / name} is a class that the train split lacks{nearest(name, classes)}'
            )
    if not found:
        has = f'images ({Path(stray[0]).name}) and ' if stray else ''
        raise UserError(
            f'{folder} has {has}no class folders; expected some of: {", ".join(classes)}'
        )
    return [(path, classes.index(name)) for name in found for path in _images(folder / name)]


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.'))


def _images(folder: Path) -> list[str]:
    found = _listed(folder)
    if not found:
        folders = [p.name for p in _folders(folder)]
        has = f'folders ({folders[0]}) and ' if folders else ''
        raise UserError(
            f'{folder} has {has}no images; expected files ending in {", ".join(SUFFIXES)}'
        )
    return found


def _listed(folder: Path) -> list[str]:
    return sorted(
        str(p)
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and not p.name.startswith('.') and not p.is_dir()
    )
