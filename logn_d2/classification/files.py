"""Image sets of separate files: lists of paths with labels, and folders of classes."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from ..errors import MissingFileError, UserError, check_known
from ..files import IMAGE_SUFFIXES, images_in
from .image_data import IMAGE_SOURCES, ImageData, file_records

logger = logging.getLogger(__name__)


# Liu et al., CVPR 2019, as published by Kang et al.: images, git blob hash, and images of the
# smallest and the largest class.
PUBLISHED_LISTS = {
    "imagenet_lt_train": (115846, "a063f095fcd475db4cf8b0658c4b73955535bbf9", 5, 1280),
    "imagenet_lt_val": (20000, "3ed3188b2f44829ce2dec1cc27040d8d40984088", 20, 20),
    "imagenet_lt_test": (50000, "76a2fb9749d6cd29e765cc4f8c270f2504131e2f", 50, 50),
}


@IMAGE_SOURCES.register("list")
def list_images(
    *, file: str, root: str = "", classes: str = "", num_classes: int = 0, published: str = ""
) -> ImageData:
    """Images in a text file with one ``path label`` per line, the format of ImageNet-LT.

    Args:
        file (str): the list; labels are numbers from 0.
        root (str): folder of relative paths; "" for the folder of the list.
        classes (str): a text file with one class name per line; "" numbers the classes.
        num_classes (int): K, without a file of names; 0 for the largest label plus one.
        published (str): name of a published list, whose counts the file must have.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line in another format, a label out of range, a repeated path, or counts that
            differ from the published list's.
    """
    lines = _lines(file)
    paths, labels = _parsed(lines, file)
    names = tuple(_lines(classes)) if classes else ()
    if not names:
        names = tuple(map(str, range(num_classes or max(labels, default=0) + 1)))
    base = root or os.path.dirname(file)
    data = ImageData(file_records([os.path.join(base, path) for path in paths], labels), names)
    if published:
        _check_published(file, data, published)
    return data


@IMAGE_SOURCES.register("folder")
def folder_images(
    *, root: str, ratio: float = 1.0, largest: int = 0, seed: int = 0, shuffled: bool = True
) -> ImageData:
    """Images of a folder with one folder per class, all of them or a long-tailed part.

    Args:
        root (str): its folders are the classes, in the order of their names.
        ratio (float): images of the largest class per image of the smallest; 1 takes all images.
        largest (int): images of the largest class; 0 for as many as the smallest class has.
        seed (int): seed of the classes' ranks and of the choice of images.
        shuffled (bool): False assigns ranks in the order of the classes.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a class has no images, or fewer than the long tail needs.
    """
    base = Path(root)
    if not base.is_dir():
        raise MissingFileError(f"There is no image folder '{root}'. Expected one folder per class.")
    names = sorted(path.name for path in base.iterdir() if path.is_dir())
    found = {name: [str(path) for path in images_in(base / name, "**/*")] for name in names}
    empty = [name for name, paths in found.items() if not paths]
    if empty or not names:
        first = f"; the first is '{empty[0]}'" if empty else ""
        raise UserError(
            f"{len(empty)} of {len(names)} class folders in '{root}' have no image{first}. "
            f"Expected {root}/CLASS/IMAGE with one of {', '.join(IMAGE_SUFFIXES)}."
        )
    labels = [label for label, name in enumerate(names) for _ in found[name]]
    paths = [path for name in names for path in found[name]]
    data = ImageData(file_records(paths, labels), tuple(names))
    if ratio == 1:
        return data
    order = np.random.default_rng(seed).permutation(len(names)) if shuffled else None
    return data.long_tailed(ratio, seed, order, largest)


def _lines(path: str) -> list[str]:
    if not os.path.isfile(path):
        raise MissingFileError(
            f"There is no file '{path}'. Expected a text file with one entry per line; see "
            "docs/classification.md."
        )
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not a text file in UTF-8 ({error}).") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _parsed(lines: list[str], file: str) -> tuple[list[str], list[int]]:
    paths, labels, wrong = [], [], []
    for number, line in enumerate(lines, start=1):
        path, _, label = line.rpartition(" ")  # from the right: a path may contain spaces
        # `isdigit` alone accepts superscripts, which `int` refuses.
        if path and label.isascii() and label.isdigit():
            paths.append(path.strip())
            labels.append(int(label))
        else:
            wrong.append((number, line))
    if wrong:
        number, line = wrong[0]
        raise UserError(
            f"{len(wrong)} of {len(lines)} lines of '{file}' are not 'path label'; the first is "
            f"entry {number}: {line[:80]!r}. Expected for example 'train/n01440764/a.jpg 0'."
        )
    seen: dict[str, int] = {}
    for number, path in enumerate(paths, start=1):
        if path in seen:
            raise UserError(
                f"'{file}' names {len(paths) - len(set(paths))} images twice; the first is {path}, "
                f"in entries {seen[path]} and {number}. Leave one of them out."
            )
        seen[path] = number
    return paths, labels


def _check_published(file: str, data: ImageData, name: str) -> None:
    check_known("published list", name, PUBLISHED_LISTS)
    number, blob, smallest, largest = PUBLISHED_LISTS[name]
    content = Path(file).read_bytes()
    # Git's hash, which the repository that publishes the lists shows for each file.
    if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == blob:
        return
    logger.info("%s is not a copy of the published list %s; checking its counts.", file, name)
    counts = np.bincount(data.labels)
    found = (len(data.records), len(counts), int(counts.min()), int(counts.max()))
    expected = (number, 1000, smallest, largest)
    if found != expected:
        raise UserError(
            f"'{file}' is not {name}: it has {found[0]} images of {found[1]} classes, {found[2]} "
            f"to {found[3]} per class; expected {expected[0]} of {expected[1]}, {expected[2]} to "
            f"{expected[3]}. Fetch the list again, or leave out published= for another list."
        )
