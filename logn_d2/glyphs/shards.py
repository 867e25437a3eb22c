"""Draw images in shards of fifty, in parallel, so that an interrupted drawing loses little.

The annotations of a shard are written after its images; a shard that has them is not drawn again.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from .lvis_form import image_part
from .plan import SPLITS, ImagePlan, image_generator, plan_split
from .sizes import GlyphSize, get_size
from .store import PARTS_FOLDER, write_file, write_json
from .vocabulary import select_vocabulary

logger = logging.getLogger(__name__)

_SHARD_IMAGES = 50
_JPEG_QUALITY = 95
# Below this number of images, starting processes costs more than it gains.
_MIN_IMAGES_FOR_WORKERS = 200


@dataclasses.dataclass(frozen=True)
class Shard:
    """A block of images drawn by one process."""

    folder: Path
    size: GlyphSize
    characters: tuple[str, ...]
    seed: int
    split: str
    number: int
    plans: Sequence[ImagePlan]

    @property
    def part_file(self) -> Path:
        """The file with its annotations until all shards are drawn."""
        return self.folder / PARTS_FOLDER / f"{self.split}_{self.number:05d}.json"

    def read_part(self) -> dict[str, Any]:
        """``images``: annotations of each image; ``checksums``: {image file: digest}."""
        return json.loads(self.part_file.read_text(encoding="utf-8"))

    def is_drawn(self) -> bool:
        """Whether its annotations and all of its images exist."""
        if not self.part_file.is_file():
            return False
        return all((self.folder / name).is_file() for name in self.read_part()["checksums"])

    def draw(self) -> int:
        """Draw and write its images, then its annotations; return the number of images."""
        # Here, because a set that is complete needs no OpenCV.
        import cv2

        from .drawing import draw_image

        cv2.setNumThreads(1)  # the processes are the parallelism
        images, checksums = [], {}
        for plan in self.plans:
            rng = image_generator(self.seed, self.split, plan.index)
            pixels, objects = draw_image(plan, self.characters, self.size, rng)
            name = f"{self.split}/{plan.index + 1:012d}.jpg"
            _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
            checksums[name] = write_file(self.folder / name, jpeg.tobytes())
            images.append(image_part(plan, name, objects))
        write_json(self.part_file, {"images": images, "checksums": checksums})
        return len(images)


def _characters(size: GlyphSize) -> tuple[str, ...]:
    """The character of each class, without those of the size that it must be unlike."""
    others = () if size.unlike is None else _characters(get_size(size.unlike))
    vocabulary = select_vocabulary(size.num_characters, size.similarity, others)
    return vocabulary * size.names_per_character


def make_shards(folder: Path, size: GlyphSize, seed: int) -> list[Shard]:
    """All shards of a set, in the order of splits and images."""
    characters = _characters(size)
    shards = []
    for split in SPLITS:
        plans = plan_split(size, seed, split)
        for number, start in enumerate(range(0, len(plans), _SHARD_IMAGES)):
            run = plans[start : start + _SHARD_IMAGES]
            shards.append(Shard(folder, size, characters, seed, split, number, run))
    return shards


def draw_shards(shards: Sequence[Shard], num_workers: int) -> None:
    """Draw the missing shards, with a progress bar.

    Args:
        shards (sequence of Shard): all shards of a set.
        num_workers (int): number of processes; a few images are drawn without any.
    """
    from tqdm import tqdm

    waiting = [shard for shard in shards if not shard.is_drawn()]
    total = sum(len(shard.plans) for shard in shards)
    left = sum(len(shard.plans) for shard in waiting)
    if left < total:
        logger.info("%d of %d images were drawn before; drawing the rest.", total - left, total)
    if left < _MIN_IMAGES_FOR_WORKERS:
        num_workers = 1
    title = f"Drawing LT-Glyphs {shards[0].size.name}"
    with tqdm(total=total, initial=total - left, desc=title, unit="image") as bar:
        for count in _results(waiting, num_workers):
            bar.update(count)


def _end_with_parent() -> None:
    """End a drawing process when its parent is killed; it would wait for work forever."""

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)  # sys.exit would end only this thread

    threading.Thread(target=watch, daemon=True).start()


def _results(shards: Sequence[Shard], num_workers: int) -> Iterator[int]:
    """Yield the number of images of each shard when it is finished."""
    if num_workers <= 1:
        yield from map(Shard.draw, shards)
        return
    # Forked processes start at once; importing torch in each new process would take longer than
    # drawing. They use only numpy and OpenCV, the latter with one thread.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_end_with_parent
    )
    try:
        futures = [pool.submit(shard.draw) for shard in shards]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A drawing process was killed, possibly because memory ran out. Run the same command "
            "again to resume. Fewer processes (num_workers) need less memory."
        ) from error
    finally:
        # After Ctrl-C, shards that are being drawn are finished and the others dropped.
        pool.shutdown(wait=True, cancel_futures=True)
