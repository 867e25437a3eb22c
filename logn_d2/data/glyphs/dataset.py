"""Draw a whole LT-Glyphs set: plan, draw in parallel, resume, assemble, verify, register."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .plan import SPLITS, ImagePlan, image_generator, plan_split
from .sizes import GlyphSize, get_size
from .store import (
    CHECKSUM_FILE,
    annotation_file,
    folder_lock,
    read_checksums,
    sha256_of,
    write_checksums,
    write_file,
    write_json,
)
from .vocabulary import category_of, select_vocabulary

__all__ = ["draw_glyphs", "glyphs_folder", "verify_glyphs"]

logger = logging.getLogger(__name__)

# Raised whenever the same size and seed would give other images than before.
DRAWING_VERSION = 1

_SHARD = 50
_JPEG_QUALITY = 95
# Starting processes costs more than it gains below this many images.
_MIN_IMAGES_FOR_WORKERS = 200


def glyphs_folder(root: str | os.PathLike, size_name: str) -> Path:
    """The folder of a size below a datasets root."""
    return Path(root) / "lt_glyphs" / size_name


def _settings(size: GlyphSize, seed: int) -> dict[str, Any]:
    settings = {"version": DRAWING_VERSION, "seed": seed, "size": dataclasses.asdict(size)}
    return json.loads(json.dumps(settings))  # tuples become lists, as read from a file


def draw_glyphs(
    root: str | os.PathLike,
    size: str | GlyphSize = "demo",
    seed: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw LT-Glyphs below a datasets root, or verify and re-use what is there.

    The images depend on size and seed alone, not on the number of processes. An interrupted
    drawing goes on where it stopped.

    Args:
        root (path): datasets root; the set lies in ``root/lt_glyphs/<size>``.
        size (str or GlyphSize): a name in ``SIZES``, or a size of your own.
        seed (int): >= 0.
        num_workers (int or None): processes; None takes all processors. 1 starts none.
        overwrite (bool): replace a set that was drawn with another seed or other settings.

    Returns:
        Path: the folder of the set.

    Raises:
        ValueError: the folder holds a set with another seed or other settings, or the files of a
            finished set have changed.
        OSError: the disk is full or the folder cannot be written.

    Example:
        >>> folder = draw_glyphs("datasets", size="tiny")  # doctest: +SKIP
    """
    size = get_size(size)
    if seed < 0:
        raise ValueError(f"seed={seed}: expected a number >= 0.")
    folder = glyphs_folder(root, size.name)
    settings = _settings(size, seed)
    if _is_finished(folder, settings) and not overwrite:
        problems = verify_glyphs(folder)
        if problems:
            raise ValueError(
                f"{folder} has changed since it was drawn: {'; '.join(problems[:3])}"
                f"{' ...' if len(problems) > 3 else ''}. Draw it again with overwrite=True."
            )
        return folder
    with folder_lock(folder):
        _prepare_folder(folder, settings, overwrite)
        if not _is_finished(folder, settings):  # else another process has just drawn it
            _draw_set(folder, size, seed, num_workers or os.cpu_count() or 1)
    return folder


def _read_settings(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    return (folder / CHECKSUM_FILE).is_file() and _read_settings(folder) == settings


def _prepare_folder(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the folder ready to draw into; refuse to mix two sets in it."""
    found = _read_settings(folder)
    if found is not None and found != settings and not overwrite:
        raise ValueError(
            f"{folder} holds LT-Glyphs with other settings ({_difference(found, settings)}). "
            "Choose another root, or replace it with overwrite=True (--overwrite)."
        )
    if found is not None and overwrite:
        for name in (CHECKSUM_FILE, "settings.json"):  # first what says that the set is there
            (folder / name).unlink(missing_ok=True)
        for name in (".parts", "annotations", *SPLITS):
            shutil.rmtree(folder / name, ignore_errors=True)
    write_json(folder / "settings.json", settings)


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """The first few settings in which two sets differ, for an error message."""
    flat = [{**s, **s.get("size", {}), "size": None} for s in (found, asked)]
    keys = [k for k in {**flat[0], **flat[1]} if flat[0].get(k) != flat[1].get(k)]
    parts = [f"{k}={flat[0].get(k)}, asked for {k}={flat[1].get(k)}" for k in keys[:3]]
    return "; ".join(parts) + (f"; {len(keys) - 3} more" if len(keys) > 3 else "")


def _draw_set(folder: Path, size: GlyphSize, seed: int, num_workers: int) -> None:
    characters = select_vocabulary(size.num_classes, size.similarity)
    jobs = [
        _Shard(folder, size, characters, seed, split, number, plans[start : start + _SHARD])
        for split in SPLITS
        for plans in [plan_split(size, seed, split)]
        for number, start in enumerate(range(0, len(plans), _SHARD))
    ]
    _run_shards(jobs, num_workers)
    parts = {
        split: [image for job in jobs if job.split == split for image in _read_part(job)["images"]]
        for split in SPLITS
    }
    checksums = {
        name: digest for job in jobs for name, digest in _read_part(job)["checksums"].items()
    }
    counts = _count_classes(parts["train"], size.num_classes)
    for split in SPLITS:
        path = annotation_file(folder, size.name, split)
        content = _lvis_json(parts[split], characters, counts, size, seed, split)
        checksums[path.relative_to(folder).as_posix()] = write_json(path, content)
    checksums["settings.json"] = sha256_of(folder / "settings.json")
    write_checksums(folder, checksums)
    shutil.rmtree(folder / ".parts", ignore_errors=True)
    for leftover in folder.glob("**/.*.tmp"):  # of a killed process
        leftover.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A run of images that one process draws; its annotations are kept when all are written."""

    folder: Path
    size: GlyphSize
    characters: tuple[str, ...]
    seed: int
    split: str
    number: int
    plans: Sequence[ImagePlan]

    @property
    def part_file(self) -> Path:
        return self.folder / ".parts" / f"{self.split}_{self.number:05d}.json"


def _read_part(shard: _Shard) -> dict[str, Any]:
    return json.loads(shard.part_file.read_text(encoding="utf-8"))


def _is_drawn(shard: _Shard) -> bool:
    if not shard.part_file.is_file():
        return False
    return all((shard.folder / name).is_file() for name in _read_part(shard)["checksums"])


def _draw_shard(shard: _Shard) -> int:
    """Draw the images of a shard; returns their number."""
    import cv2

    from .drawing import draw_image

    cv2.setNumThreads(1)  # the processes are the parallelism
    images, checksums = [], {}
    for plan in shard.plans:
        rng = image_generator(shard.seed, shard.split, plan.index)
        pixels, objects = draw_image(plan, shard.characters, shard.size, rng)
        name = f"{shard.split}/{plan.index + 1:012d}.jpg"
        _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        checksums[name] = write_file(shard.folder / name, encoded.tobytes())
        annotations = [
            {
                "class": drawn.class_index,
                "bbox": drawn.bbox,
                "area": drawn.area,
                "segmentation": drawn.polygons,
            }
            for drawn in objects
            if drawn.annotated and drawn.polygons
        ]
        shown = {annotation["class"] for annotation in annotations}
        images.append(
            {
                "index": plan.index,
                "file_name": name,
                "annotations": annotations,
                "neg": list(plan.negatives),
                "not_exhaustive": [c for c in plan.not_exhaustive if c in shown],
            }
        )
    write_json(shard.part_file, {"images": images, "checksums": checksums})
    return len(images)


def _run_shards(shards: Sequence[_Shard], num_workers: int) -> None:
    """Draw what is not drawn yet, with a progress bar."""
    from tqdm import tqdm

    waiting = [shard for shard in shards if not _is_drawn(shard)]
    total = sum(len(shard.plans) for shard in shards)
    left = sum(len(shard.plans) for shard in waiting)
    if left < total:
        logger.info("%d of %d images were drawn before; drawing the rest.", total - left, total)
    title = f"Drawing LT-Glyphs {shards[0].size.name}"
    with tqdm(total=total, initial=total - left, desc=title, unit="image") as bar:
        for count in _results(waiting, num_workers if left >= _MIN_IMAGES_FOR_WORKERS else 1):
            bar.update(count)


def _results(shards: Sequence[_Shard], num_workers: int) -> Iterator[int]:
    """The number of images of each shard as it is finished."""
    if num_workers <= 1:
        yield from map(_draw_shard, shards)
        return
    # Forked processes start at once; importing torch in each new one would take longer than
    # drawing. They touch only numpy and OpenCV, and OpenCV on one thread.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context)
    try:
        futures = [pool.submit(_draw_shard, shard) for shard in shards]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise RuntimeError(
            "a drawing process was killed, perhaps for want of memory. Run the same command "
            "again: it goes on where it stopped. Fewer processes (num_workers) need less memory."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _count_classes(images: list[dict[str, Any]], num_classes: int) -> np.ndarray:
    """Images and instances of each class, int64 (2, K)."""
    counts = np.zeros((2, num_classes), dtype=np.int64)
    for image in images:
        classes = [annotation["class"] for annotation in image["annotations"]]
        counts[0, list(set(classes))] += 1
        np.add.at(counts[1], classes, 1)
    return counts


def _lvis_json(
    images: list[dict[str, Any]],
    characters: Sequence[str],
    train_counts: np.ndarray,
    size: GlyphSize,
    seed: int,
    split: str,
) -> dict[str, Any]:
    """The annotation file of a split; like LVIS's, both splits tell the training counts."""
    categories = [
        {
            **category_of(character, index + 1),
            "image_count": int(train_counts[0, index]),
            "instance_count": int(train_counts[1, index]),
            "frequency": size.frequency_of(int(train_counts[0, index])),
        }
        for index, character in enumerate(characters)
    ]
    annotations = []
    for image in images:
        for found in image["annotations"]:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image["index"] + 1,
                "category_id": found["class"] + 1,
            }
            annotation.update((key, found[key]) for key in ("bbox", "area", "segmentation"))
            annotations.append(annotation)
    return {
        "info": {"description": f"LT-Glyphs {size.name} {split}", **_settings(size, seed)},
        "licenses": [],
        "categories": categories,
        "images": [_image_entry(image, size) for image in images],
        "annotations": annotations,
    }


def _image_entry(image: dict[str, Any], size: GlyphSize) -> dict[str, Any]:
    return {
        "id": image["index"] + 1,
        "file_name": image["file_name"],
        # LVIS v1 tells where an image lies by the last two parts of this address alone.
        "coco_url": f"http://lt-glyphs.invalid/{image['file_name']}",
        "height": size.image_px,
        "width": size.image_px,
        "neg_category_ids": [c + 1 for c in image["neg"]],
        "not_exhaustive_category_ids": [c + 1 for c in image["not_exhaustive"]],
    }


def verify_glyphs(folder: str | os.PathLike) -> list[str]:
    """Compare a finished set with its checksums.

    Args:
        folder (path): what :func:`draw_glyphs` returned.

    Returns:
        list[str]: one line for each file that is missing or has changed; empty when all is well.

    Raises:
        FileNotFoundError: the set is not finished.
    """
    folder = Path(folder)
    problems = []
    for name, digest in read_checksums(folder).items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif sha256_of(path) != digest:
            problems.append(f"{name} has changed")
    return problems
