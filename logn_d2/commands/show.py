"""`logn show`: detections before and after calibration for images, a video or a camera."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm

from ..engine import load_config, short_errors
from ..engine.show import SideBySide, check_comparison
from ..errors import MissingFileError, UserError
from ..files import IMAGE_SUFFIXES, atomic_write, images_in
from ..pictures.before_after import Shown

WINDOW = "before and after calibration (q quits)"
WEBCAM_FPS = 10.0


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Find image files.

    Args:
        inputs (Sequence[str]): files, patterns, or folders with images.

    Raises:
        FileNotFoundError: a name matches nothing, or a folder has no images.
        ValueError: a file is not an image.
    """
    found: list[Path] = []
    for name in inputs:
        paths = (
            [Path(name)] if os.path.exists(name) else map(Path, glob.glob(os.path.expanduser(name)))
        )
        files = [file for path in sorted(paths) for file in images_in(path)]
        if not files:
            raise MissingFileError(f"There is no image at '{name}'. Give files or a folder.")
        found += files
    # All of them, before the model is loaded.
    for path in found:
        try:
            with Image.open(path):
                pass
        except OSError as error:
            raise UserError(f"{path} is not a readable image ({error}).") from error
    return found


def output_paths(images: Sequence[Path], output: str | None) -> list[Path | None]:
    """Output path of the picture of each image.

    Raises:
        ValueError: two pictures would have the same name, or overwrite an image.
    """
    if not output:
        return [None] * len(images)
    names_file = len(images) == 1 and Path(output).suffix and not os.path.isdir(output)
    if names_file and Path(output).suffix.lower() not in IMAGE_SUFFIXES:
        known = ", ".join(IMAGE_SUFFIXES)
        raise UserError(f"--output {output} is neither a folder nor an image ({known}).")
    paths = [Path(output)] if names_file else [Path(output, image.name) for image in images]
    # Some formats can be read but not written.
    paths = [p if p.suffix.lower() in IMAGE_SUFFIXES else p.with_suffix(".png") for p in paths]
    taken = {path.resolve() for path in images}
    if len(set(paths)) < len(paths) or any(path.resolve() in taken for path in paths):
        raise UserError(
            f"Pictures in {output} would overwrite each other or their images. Choose another "
            "--output, and use one call per folder of images."
        )
    return paths


def show_images(args: argparse.Namespace, cfg: CfgNode, shown: Shown) -> None:
    """Draw one picture per image."""
    images = find_images(args.input)
    paths = output_paths(images, args.output)
    draw = SideBySide(cfg, shown)
    written = 0
    for image, path in tqdm(list(zip(images, paths)), unit="image", disable=len(images) == 1):
        picture = draw(read_image(str(image), "RGB"))
        if path is not None:
            with atomic_write(path) as temporary:
                kind = Image.registered_extensions()[path.suffix.lower()]
                Image.fromarray(picture).save(temporary, format=kind)
            written += 1
        if args.show and _shown_in_window(picture, wait_ms=0):
            break
    if args.output:
        print(f"Wrote {written} pictures to {args.output}")


def show_video(args: argparse.Namespace, cfg: CfgNode, shown: Shown) -> None:
    """Draw the frames of a video or camera into an mp4 file, a window, or both."""
    source = 0 if args.webcam else args.video_input
    if not args.webcam and not os.path.isfile(source):
        raise MissingFileError(f"The video {source} does not exist.")
    path = video_path(args.output, "webcam" if args.webcam else source)
    capture = cv2.VideoCapture(source)
    try:
        if not capture.isOpened():
            what = "The camera can't be opened" if args.webcam else f"{source} is no video"
            raise UserError(f"{what} that OpenCV can read. Check it, or use --input with images.")
        # Cameras and some containers report 0, NaN or a clock of thousands.
        rate = capture.get(cv2.CAP_PROP_FPS)
        if args.webcam or not 0 < rate < 1000:
            rate = WEBCAM_FPS
        total = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) or None
        draw = SideBySide(cfg, shown)
        frames = tqdm(_frames(capture), total=None if args.webcam else total, unit="frame")
        with Mp4(path, rate) if path else contextlib.nullcontext() as video:
            number = _draw_frames(frames, draw, video, args)
    finally:
        capture.release()
    if number == 0:
        what = "The camera gives no frames; is it in use?" if args.webcam else f"{source} is empty."
        raise UserError(f"{what} There is nothing to show.")
    if path:
        print(f"Wrote {number} frames to {path}")


def video_path(output: str | None, source: str) -> Path | None:
    """The mp4 file to write; None if none was requested.

    Raises:
        ValueError: another file type, or the input video itself.
    """
    if not output:
        return None
    path = Path(output)
    if path.is_dir() or not path.suffix:
        path = path / f"{Path(source).stem}.mp4"
    if path.suffix.lower() != ".mp4":
        raise UserError(f"--output {output} is not an mp4 file. Name it *.mp4, or give a folder.")
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise UserError(f"--output {output} is the input video. Choose another name.")
    return path


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB, up to the end or to a frame that can't be read."""
    while True:
        read, frame = capture.read()
        if not read:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _draw_frames(
    frames: Iterable[np.ndarray], draw: SideBySide, video: Mp4 | None, args: argparse.Namespace
) -> int:
    """Draw until the frames end or the user quits; return the number of frames drawn."""
    number = 0
    # For a camera, Ctrl-C is the normal way to stop.
    with contextlib.suppress(*([KeyboardInterrupt] if args.webcam else [])):
        for frame in frames:
            picture = draw(frame)
            if video is not None:
                video.write(picture)
            number += 1
            if args.show and _shown_in_window(picture, wait_ms=1):
                break
    return number


class Mp4:
    """An mp4 file that is written completely or not at all; a context manager.

    Args:
        path (Path): the file; missing folders are created.
        rate (float): frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self._path = path
        self._rate = rate
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> Mp4:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # OpenCV infers the format from the suffix, so the temporary file has the same one.
        self._folder = tempfile.TemporaryDirectory(prefix=".video-", dir=self._path.parent)
        self._temporary = os.path.join(self._folder.name, "video.mp4")
        return self

    def write(self, picture: np.ndarray) -> None:
        """Add a picture, uint8 RGB; all must have the same size.

        Raises:
            OSError: this OpenCV can't write mp4 files.
        """
        # Only the first picture tells the size.
        if self._writer is None:
            size = (picture.shape[1], picture.shape[0])
            code = cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(self._temporary, code, self._rate, size)
            if not self._writer.isOpened():
                raise OSError(
                    "This OpenCV can't write mp4 files: it was built without FFmpeg. Install "
                    "opencv-python with pip, or use --input with single frames."
                )
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def __exit__(self, kind: type | None, *error: object) -> None:
        if self._writer is not None:
            self._writer.release()
            if kind is None:
                os.replace(self._temporary, self._path)
        self._folder.cleanup()


def check_window() -> None:
    """Open the window.

    Raises:
        ValueError: there is no screen, or OpenCV has no windows.
    """
    hint = "Omit --show and give --output."
    # Checked first, because Qt aborts the process without a screen.
    named = {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    if sys.platform.startswith("linux") and not named:
        raise UserError(f"--show needs a screen, and DISPLAY is not set. {hint}")
    try:
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
    except cv2.error as error:
        raise UserError(
            f"--show needs an OpenCV with windows; opencv-python-headless has none. {hint}"
        ) from error


def _shown_in_window(picture: np.ndarray, wait_ms: int) -> bool:
    """Show a picture, until a key is pressed if ``wait_ms`` is 0; True for q or Escape."""
    cv2.imshow(WINDOW, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    # Some backends set higher bits for modifier keys.
    return cv2.waitKey(wait_ms) & 0xFF in (ord("q"), 27)


def run(args: argparse.Namespace) -> int:
    """Draw images or a video; return the exit status."""
    with short_errors():
        setup_logger(name="logn_d2")
        cfg = load_config(args.config_file, args.opts, args.imports)
        check_comparison(cfg)
        if args.show:
            check_window()
        shown = Shown(
            args.confidence_threshold,
            args.calibrated_threshold,
            one_per_place=not args.overlapping,
        )
        (show_images if args.input else show_video)(args, cfg, shown)
    return 0
