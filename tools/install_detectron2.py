#!/usr/bin/env python3
"""Install Detectron2 0.5 from its source distribution, patched for current libraries.

The package index does not have Detectron2 under its own name. Its release 0.5, without the C++
sources, is there as the source distribution ``detectron2-cdo``. This script downloads that file
with pip (hash checked before anything in it runs), applies the rows of ``PATCHES``, writes a
pure-Python wheel named ``detectron2`` and installs it. An importable Detectron2 that this script
did not make is left alone.

Rotated boxes, Detectron2's own deformable convolution and its C++ COCO evaluation need compiled
code that is absent here: using them raises an error that says so.

Example:
    python tools/install_detectron2.py
    python tools/install_detectron2.py --wheel-dir dist        # build the wheel, install nothing
"""

from __future__ import annotations

import argparse
import base64
import csv
import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

SDIST_NAME = "detectron2-cdo"
SDIST_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"
UPSTREAM_VERSION = "0.5"
LOCAL_LABEL = "logn"
# Newer ones stop at the direct URL in an extra of the source distribution, even with --no-deps.
OLD_PIP = "pip==23.2.1"


@dataclass(frozen=True)
class Patch:
    """One row of the patch table.

    Args:
        reason (str): failure or warning without the patch.
        files (str): glob of paths inside the wheel (``*`` matches ``/`` too).
        pattern (str): regular expression, multi-line mode.
        replacement (str): as for ``re.sub``.
        count (int): number of occurrences in the pinned source distribution.
    """

    reason: str
    files: str
    pattern: str
    replacement: str
    count: int


# fmt: off  (one patch, two or three lines)
PATCHES: tuple[Patch, ...] = (
    Patch("Pillow 10 removed the alias LINEAR", "*.py", r"\bImage\.LINEAR\b", "Image.BILINEAR", 1),
    Patch(
        "numpy 1.24 removed its aliases of the Python builtins",
        "*.py",
        r"\bnp\.(bool|int|float|object|str)\b",
        r"\1",
        18,
    ),
    Patch(
        "numpy 2 raises where copy=False cannot be kept",
        "detectron2/layers/mask_ops.py",
        r"np\.array\(mask, copy=False\)",
        "np.asarray(mask)",
        1,
    ),
    Patch(
        "torch warns that a tensor from a list of arrays is slow; it is",
        "detectron2/data/detection_utils.py",
        r"target\.gt_boxes = Boxes\(boxes\)",
        "target.gt_boxes = Boxes(np.asarray(boxes))",
        1,
    ),
    Patch(
        "setuptools 82 removed pkg_resources, and importing it warns before that",
        "detectron2/model_zoo/model_zoo.py",
        r"^import pkg_resources\n",
        "",
        1,
    ),
    Patch(
        "the same; the yaml files lie beside the module",
        "detectron2/model_zoo/model_zoo.py",
        r"pkg_resources\.resource_filename\(\s*\"detectron2\.model_zoo\", ",
        "os.path.join(os.path.dirname(__file__), ",
        1,
    ),
    Patch(
        "torch warns when indexing is not given; ij is the old behaviour",
        "detectron2/modeling/anchor_generator.py",
        r"torch\.meshgrid\(shifts_y, shifts_x\)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        1,
    ),
    Patch(
        "torch warns when indexing is not given; ij is the old behaviour",
        "detectron2/projects/panoptic_deeplab/post_processing.py",
        r"(torch\.arange\(width, dtype=offsets\.dtype, device=offsets\.device\),)",
        r'\1 indexing="ij",',
        1,
    ),
    Patch(
        "torch.cuda.amp is deprecated and warns",
        "detectron2/engine/train_loop.py",
        r"from torch\.cuda\.amp import",
        "from torch.amp import",
        2,
    ),
    Patch(
        "torch.amp.autocast takes the device type",
        "detectron2/engine/train_loop.py",
        r"with autocast\(\):",
        'with autocast("cuda"):',
        1,
    ),
    Patch("Logger.warn is deprecated and warns", "*.py", r"logger\.warn\(", "logger.warning(", 9),
    Patch(
        "COCO evaluation works without the compiled operators",
        "detectron2/evaluation/coco_evaluation.py",
        r"from detectron2\.evaluation\.fast_eval_api import COCOeval_opt",
        "COCOeval_opt = COCOeval  # the C++ twin is not in this build",
        1,
    ),
    Patch(
        "rotated NMS reports the missing operators by name",
        "detectron2/layers/nms.py",
        r"torch\.ops\.detectron2\.nms_rotated",
        "_C.nms_rotated",
        1,
    ),
    Patch(
        "the import that the row above needs",
        "detectron2/layers/nms.py",
        r"^from torchvision\.ops import boxes as box_ops$",
        r"\g<0>\nfrom detectron2 import _C",
        1,
    ),
    Patch(
        "TracingAdapter can be imported although Caffe2 left PyTorch",
        "detectron2/export/__init__.py",
        r"^from \.api import \*$",
        "try:\n    from .api import *\nexcept ImportError:\n    pass",
        1,
    ),
)
# fmt: on

STUB = '''"""Stands in for Detectron2's compiled operators, absent from this pure-Python build."""


def has_cuda():
    return False


def get_compiler_version():
    return "none (pure-Python build)"


get_cuda_version = get_compiler_version


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    # As Detectron2's own stand-ins for what is not built (create_dummy_func) do.
    raise ImportError(
        f"detectron2._C.{name} is a compiled operator (rotated boxes, deformable convolution, C++ "
        "COCO evaluation), but this is the pure-Python build of Detectron2 made by "
        "tools/install_detectron2.py. Build Detectron2 from its repository in this environment "
        "to use it."
    )
'''

REQUIREMENTS = (
    "Pillow>=7.1 cloudpickle future fvcore>=0.1.5,<0.1.6 hydra-core>=1.1 iopath>=0.1.7 matplotlib "
    "numpy omegaconf>=2.1 pycocotools>=2.0.2 pydot shapely tabulate tensorboard termcolor>=1.1 "
    "torch>=2.3 torchvision tqdm>4.29.0 yacs>=0.1.6"
).split()
METADATA = """Metadata-Version: 2.1
Name: detectron2
Version: {version}
Summary: Detectron2 0.5, Python part, patched for current libraries
License: Apache-2.0
Requires-Python: >=3.7
""" + "".join(f"Requires-Dist: {name}\n" for name in REQUIREMENTS)

# Where the source distribution keeps what belongs into the wheel (as its own setup.py maps it).
LAYOUT = {
    "LICENSE": "LICENSE",
    "detectron2/": "detectron2/",
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}
NOTICE = "# Changed from Detectron2 0.5 by logn_d2's tools/install_detectron2.py\n"


def wheel_version() -> str:
    """Return the wheel's version; its local label changes with the patch table."""
    digest = hashlib.sha256(repr((PATCHES, STUB, METADATA, LAYOUT)).encode()).hexdigest()
    return f"{UPSTREAM_VERSION}+{LOCAL_LABEL}.{digest[:8]}"


def installed_version() -> str | None:
    """Return the importable Detectron2's version (``"unknown"`` without metadata) or None."""
    if importlib.util.find_spec("detectron2") is None:
        return None
    try:
        return importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def download_sdist(target: Path) -> Path:
    """Download the source distribution with pip, as pip is configured on this machine.

    pip checks the hash before it runs the file's own ``setup.py``; that one imports torch, hence
    ``--no-build-isolation``.

    Args:
        target (Path): existing folder.

    Raises:
        RuntimeError: pip failed.
    """
    requirement = target / "requirement.txt"
    requirement.write_text(f"{SDIST_NAME}=={UPSTREAM_VERSION} --hash=sha256:{SDIST_SHA256}\n")
    pip = [sys.executable, "-m", "pip"]
    command = [*pip, "download", "--no-deps", "--no-build-isolation", "--no-binary", SDIST_NAME]
    command += ["--require-hashes", "--dest", str(target), "--requirement", str(requirement)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if "direct URL" in result.stderr:
        old_pip = [*pip, "install", "--quiet", "--target", str(target / "pip"), OLD_PIP]
        subprocess.run(old_pip, check=True)
        environment = {**os.environ, "PYTHONPATH": str(target / "pip")}
        result = subprocess.run(
            command, check=False, capture_output=True, text=True, env=environment
        )
    if result.returncode != 0:
        raise RuntimeError(
            f"{result.stderr.strip()}\npip could not download {SDIST_NAME}=={UPSTREAM_VERSION}. "
            "torch and setuptools must be installed first; with no network give --sdist PATH."
        )
    return next(target.glob("*.tar.gz"))


def read_sdist(path: Path) -> dict[str, bytes]:
    """Read the files that belong into the wheel.

    Args:
        path (Path): the source distribution.

    Returns:
        dict[str, bytes]: path inside the wheel -> content, in a fixed order.

    Raises:
        ValueError: the file is not the pinned one.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise ValueError(
            f"{path} has sha256 {digest}, expected {SDIST_SHA256}; delete it and download it again."
        )
    files: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            inner = member.name.partition("/")[2]
            for source, destination in LAYOUT.items():
                content = archive.extractfile(member) if inner.startswith(source) else None
                if content is not None:
                    files[destination + inner[len(source) :]] = content.read()
    return dict(sorted(files.items()))


def apply_patches(files: dict[str, bytes]) -> list[int]:
    """Apply the patch table in place and mark each changed file, as its licence asks.

    Args:
        files (dict[str, bytes]): as from ``read_sdist``.

    Returns:
        list[int]: number of replacements for each row of ``PATCHES``.

    Raises:
        ValueError: a row met another number of occurrences than the table says.
    """
    counts = []
    for patch in PATCHES:
        pattern, found = re.compile(patch.pattern, re.MULTILINE), 0
        for name in fnmatch.filter(files, patch.files):
            text, n = pattern.subn(patch.replacement, files[name].decode())
            if n:
                marked = text if text.startswith(NOTICE) else NOTICE + text
                files[name] = marked.encode()
                found += n
        if found != patch.count:
            raise ValueError(
                f"patch {patch.pattern!r} met {found} places in {patch.files}, "
                f"expected {patch.count}"
            )
        counts.append(found)
    return counts


def write_wheel(files: dict[str, bytes], folder: Path) -> Path:
    """Write the patched files, ``LICENSE`` included, as a pure-Python wheel into ``folder``."""
    version = wheel_version()
    info = f"detectron2-{version}.dist-info"
    content = {name: data for name, data in files.items() if name != "LICENSE"}
    content["detectron2/_C.py"] = STUB.encode()
    content[f"{info}/LICENSE"] = files["LICENSE"]
    content[f"{info}/METADATA"] = METADATA.format(version=version).encode()
    wheel_text = (
        "Wheel-Version: 1.0\nGenerator: logn_d2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    content[f"{info}/WHEEL"] = wheel_text.encode()
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for name, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(data)])
    rows.writerow([f"{info}/RECORD", "", ""])
    content[f"{info}/RECORD"] = record.getvalue().encode()

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"detectron2-{version}-py3-none-any.whl"
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    os.replace(partial, path)
    return path


def build_wheel(folder: Path, sdist: Path | None = None) -> Path:
    """Download (unless given), patch and write the wheel into ``folder``."""
    with tempfile.TemporaryDirectory() as scratch:
        files = read_sdist(sdist or download_sdist(Path(scratch)))
    apply_patches(files)
    return write_wheel(files, folder)


def ensure_detectron2(sdist: Path | None = None) -> str:
    """Install the patched wheel unless a Detectron2 of the user's is importable.

    Args:
        sdist (Path | None): the source distribution, when there is no network.

    Returns:
        str: one line about the result.
    """
    present = installed_version()
    if present is not None and f"+{LOCAL_LABEL}." not in present:
        return f"Detectron2 {present} is importable: used as it is"
    if present == wheel_version():
        return f"Detectron2 {present} is already installed"
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build_wheel(Path(scratch), sdist)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
        subprocess.run(command, check=True)
    return f"Detectron2 {wheel_version()} installed"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sdist", type=Path, help="use this file instead of downloading it")
    parser.add_argument("--wheel-dir", type=Path, help="only build the wheel, into this folder")
    args = parser.parse_args(argv)
    try:
        if args.wheel_dir:
            print(build_wheel(args.wheel_dir, args.sdist))
        else:
            print(ensure_detectron2(args.sdist))
    except (RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
