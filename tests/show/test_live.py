"""Windows and cameras, with stand-ins for both: no screen and no camera are needed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from logn_d2.engine.show import SideBySide

from .command_line import PICTURE, arguments, error_of


class Camera:
    """Stands for `cv2.VideoCapture(0)`: gives frames until one can't be read.

    Args:
        frames (int): that can be read.
        opened (bool): whether it can be opened.
    """

    def __init__(self, frames: int, opened: bool = True) -> None:
        self.left, self.opened, self.released = frames, opened, 0

    def isOpened(self) -> bool:  # OpenCV's name
        return self.opened

    def get(self, name: int) -> float:
        return -1.0  # what cameras answer to what they do not know

    def read(self) -> tuple[bool, np.ndarray | None]:
        if not self.left:
            return False, None
        self.left -= 1
        return True, np.full((48, 64, 3), 40 * self.left, dtype=np.uint8)

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def camera(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that puts a camera there; files are read as ever."""
    capture = cv2.VideoCapture

    def plug_in(*args: Any) -> Camera:
        made = Camera(*args)
        monkeypatch.setattr(cv2, "VideoCapture", lambda name: capture(name) if name else made)
        return made

    return plug_in


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[int, ...]], list[int]]:
    """Shapes of the pictures in the window, and keys that will be pressed, one for each."""
    pictures: list[tuple[int, ...]] = []
    keys: list[int] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: pictures.append(picture.shape))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: keys.pop(0) if keys else -1)
    return pictures, keys


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What is drawn: the frames as they are, which takes no time."""
    drawn: list[np.ndarray] = []

    def draw(self: SideBySide, pixels: np.ndarray) -> np.ndarray:
        drawn.append(pixels)
        return pixels

    monkeypatch.setattr(SideBySide, "__call__", draw)
    return drawn


def _frames(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def test_a_camera_is_shown_and_written_until_a_frame_fails(
    demo: ModuleType, folder: Path, tmp_path: Path, camera: Any, window: tuple, capsys: Any
) -> None:
    source = camera(2)
    assert demo.main(arguments(folder, "--webcam", "--show", "--output", str(tmp_path))) == 0
    assert window[0] == [(*PICTURE, 3)] * 2 and source.released == 1
    assert f"Wrote 2 frames to {tmp_path}/webcam.mp4" in capsys.readouterr().out
    assert [frame.shape for frame in _frames(tmp_path / "webcam.mp4")] == [(*PICTURE, 3)] * 2


def test_frames_are_shown_with_their_own_colours(
    demo: ModuleType, folder: Path, window: tuple, plain: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    demo.main(arguments(folder, "--video-input", f"{folder}/video.mp4", "--show"))
    for frame, rgb, original in zip(shown, plain, _frames(folder / "video.mp4"), strict=True):
        np.testing.assert_array_equal(frame, original)
        np.testing.assert_array_equal(rgb, original[..., ::-1])


def test_interrupting_a_camera_is_the_way_to_end_and_keeps_the_video(
    demo: ModuleType,
    folder: Path,
    tmp_path: Path,
    camera: Any,
    plain: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, read = camera(5), Camera.read

    def interrupted(self: Camera) -> tuple[bool, np.ndarray | None]:
        if self.left == 2:
            raise KeyboardInterrupt
        return read(self)

    monkeypatch.setattr(Camera, "read", interrupted)
    assert demo.main(arguments(folder, "--webcam", "--output", f"{tmp_path}/v.mp4")) == 0
    assert len(_frames(tmp_path / "v.mp4")) == 3 and source.released == 1


def test_an_error_in_a_frame_leaves_no_file_and_lets_the_camera_go(
    demo: ModuleType, folder: Path, tmp_path: Path, camera: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SideBySide, pixels: np.ndarray) -> np.ndarray:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(SideBySide, "__call__", fail)
    source = camera(2)
    with pytest.raises(RuntimeError, match="out of memory"):
        demo.main(arguments(folder, "--webcam", "--output", f"{tmp_path}/v.mp4"))
    assert source.released == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("made", "message"),
    [((0, False), "The camera can't be opened"), ((0,), "The camera gives no frames")],
)
def test_a_camera_that_gives_nothing_is_named(
    demo: ModuleType,
    folder: Path,
    tmp_path: Path,
    camera: Any,
    capsys: pytest.CaptureFixture,
    made: tuple,
    message: str,
) -> None:
    source = camera(*made)
    more = arguments(folder, "--webcam", "--output", f"{tmp_path}/v.mp4")
    assert message in error_of(capsys, demo, more)
    assert source.released == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("keys", "number"), [("q", 1), (" q", 2), ("\x1b", 1), ("abcde", 5)])
def test_a_window_shows_a_video_until_q_or_escape_is_pressed(
    demo: ModuleType,
    folder: Path,
    tmp_path: Path,
    window: tuple,
    plain: list,
    capsys: pytest.CaptureFixture,
    keys: str,
    number: int,
) -> None:
    window[1].extend(map(ord, keys))
    more = ("--video-input", f"{folder}/video.mp4", "--show", "--output", f"{tmp_path}/v.mp4")
    assert demo.main(arguments(folder, *more)) == 0
    assert len(window[0]) == len(_frames(tmp_path / "v.mp4")) == number
    assert f"Wrote {number} frames" in capsys.readouterr().out


def test_a_window_shows_images_until_q_is_pressed(
    demo: ModuleType,
    folder: Path,
    tmp_path: Path,
    window: tuple,
    plain: list,
    capsys: pytest.CaptureFixture,
) -> None:
    more = ("--input", f"{folder}/images", "--show", "--output", str(tmp_path))
    window[1].append(ord("q"))
    assert demo.main(arguments(folder, *more)) == 0
    assert "Wrote 1 pictures" in capsys.readouterr().out and len(window[0]) == 1
    assert demo.main(arguments(folder, *more)) == 0
    assert len(window[0]) == 3 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is a screen")
def test_a_window_needs_a_screen(
    demo: ModuleType, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    shown = arguments(folder, "--input", f"{folder}/images/0.png", "--show")
    assert "--show needs a screen" in error_of(capsys, demo, shown)
    monkeypatch.setenv("DISPLAY", ":0")

    def headless(*args: object) -> None:
        raise cv2.error("The function is not implemented.")

    monkeypatch.setattr(cv2, "namedWindow", headless)
    assert "opencv-python-headless" in error_of(capsys, demo, shown)
