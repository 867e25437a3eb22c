"""`logn show` draws images and videos for any model, and reports a mistake in one message."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from logn_d2.core import LogitStatistics
from logn_d2.engine.show import SideBySide

from ..processes import Command
from ..small_detectors import CLASS_NAMES
from .command_line import PICTURE, THRESHOLD, arguments, error_of


def sides(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of a picture, without captions."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture)[-360:]
    assert pixels.shape == (360, PICTURE[1], 3)
    return pixels[:, :480], pixels[:, -480:]


def test_command_draws_every_image_of_a_folder(folder: Path, tmp_path: Path) -> None:
    options = arguments(folder, "--input", f"{folder}/images", "--output", f"{tmp_path}/new/pics")
    process = Command(["-m", "logn_d2", "show", *options], tmp_path / "log.txt")
    assert process.wait() == 0, process.output
    assert f"Wrote 2 pictures to {tmp_path}/new/pics" in process.output
    assert sorted(path.name for path in (tmp_path / "new" / "pics").iterdir()) == ["0.png", "1.png"]
    for name in ("0.png", "1.png"):
        before, after = sides(tmp_path / "new" / "pics" / name)
        assert not np.array_equal(before, after)


def test_one_image_has_one_file_and_nothing_found_shows_the_image(
    demo: ModuleType, folder: Path, tmp_path: Path
) -> None:
    more = ("--input", f"{folder}/images/1.*", "--output", f"{tmp_path}/one.png")
    assert demo.main(arguments(folder, *more, "--confidence-threshold", "1")) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
    before, after = sides(tmp_path / "one.png")
    np.testing.assert_array_equal(before, after)
    more = (*more, "--confidence-threshold", "1", "--calibrated-threshold", "0")
    assert demo.main(arguments(folder, *more)) == 0
    before, after = sides(tmp_path / "one.png")
    assert (before != after).mean() > 0.01


def test_video_has_as_many_frames_at_the_same_rate(
    demo: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    more = ("--video-input", f"{folder}/video.mp4", "--output", str(tmp_path))
    assert demo.main(arguments(folder, *more)) == 0
    assert "Wrote 5 frames" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]
    capture = cv2.VideoCapture(str(tmp_path / "video.mp4"))
    frames = list(demo._frames(capture))
    assert [frame.shape for frame in frames] == [(*PICTURE, 3)] * 5
    assert capture.get(cv2.CAP_PROP_FPS) == 7.0
    assert abs(frames[0].astype(int) - frames[4]).mean() > 5


def test_an_interrupted_video_leaves_nothing(
    demo: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def draw(self: SideBySide, pixels: np.ndarray) -> np.ndarray:
        calls.append(pixels)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return pixels

    monkeypatch.setattr(SideBySide, "__call__", draw)
    more = ("--video-input", f"{folder}/video.mp4", "--output", f"{tmp_path}/v.mp4")
    with pytest.raises(KeyboardInterrupt):
        demo.main(arguments(folder, *more))
    assert len(calls) == 3 and list(tmp_path.iterdir()) == []


def labels_drawn(
    demo: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[tuple[str, ...], list[str]]]:
    seen = []

    def draw(pixels: np.ndarray, sides: list, class_names: list[str]) -> np.ndarray:
        seen.append((tuple(class_names), [caption for caption, _ in sides]))
        return pixels

    monkeypatch.setattr("logn_d2.engine.show.draw_side_by_side", draw)
    more = ("--input", f"{folder}/images/0.png", "--output", str(tmp_path))
    more = (*more, "--calibration", "logn(beta=mean)")
    assert demo.main(arguments(folder, *more)) == 0
    return seen


def test_class_names_come_from_the_statistics(
    demo: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((names, (before, after)),) = labels_drawn(demo, folder, tmp_path, monkeypatch)
    assert list(names) == CLASS_NAMES
    number = int(before.split()[1])
    assert before == f"uncalibrated: {number} above {THRESHOLD}" and number > 0
    # Fewer, where there are not as many places.
    assert 0 < int(after.removeprefix("logn(beta=mean): the best ")) <= number


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("images/0.png", "images/nothing*.png", "no image at"),
        ("images/0.png", "images/notes.txt", "notes.txt is not a readable image"),
        ("stats.safetensors", "none.safetensors", "no statistics file"),
        ("model.pth", "none.pth", "weights are missing"),
        ("--overlapping", "--calibration=lgon", "Unknown calibration 'lgon'"),
        ("out", "images", "overwrite"),
        ("out", "picture.docx", "neither a folder nor an image"),
    ],
)
def test_mistakes(
    demo: ModuleType, folder: Path, capsys: pytest.CaptureFixture, old: str, new: str, message: str
) -> None:
    more = ("--overlapping", "--input", f"{folder}/images/0.png", "--output", f"{folder}/out")
    changed = [
        f"{folder}/{new}" if each == f"{folder}/{old}" else new if each == old else each
        for each in arguments(folder, *more)
    ]
    assert message in error_of(capsys, demo, changed)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("video", "output", "message"),
    [
        ("none.mp4", "v.mp4", "does not exist"),
        ("stats.safetensors", "v.mp4", "is no video that OpenCV can read"),
        ("video.mp4", "v.avi", "is not an mp4 file"),
        ("video.mp4", "video.mp4", "is the input video"),
    ],
)
def test_mistakes_with_videos(
    demo: ModuleType,
    folder: Path,
    capsys: pytest.CaptureFixture,
    video: str,
    output: str,
    message: str,
) -> None:
    more = ("--video-input", f"{folder}/{video}", "--output", f"{folder}/{output}")
    assert message in error_of(capsys, demo, arguments(folder, *more))


def test_without_statistics_there_must_be_another_calibration(
    demo: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one = ("--input", f"{folder}/images/0.png", "--output", str(tmp_path))
    rest = arguments(folder, *one)
    position = rest.index("--stats")
    without = [*rest[:position], *rest[position + 2 :]]
    assert "Give --stats FILE" in error_of(capsys, demo, without)
    assert "needs logit statistics" in error_of(capsys, demo, ["--calibration", "logn", *without])
    assert demo.main(["--calibration", "temperature(temperature=2)", *without]) == 0


def test_statistics_of_other_weights(
    demo: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    weights = torch.load(folder / "model.pth", weights_only=True)["model"]
    weights["roi_heads.box_predictor.cls_score.weight"] += 1
    torch.save({"model": weights}, tmp_path / "other.pth")
    more = ("--input", f"{folder}/images/0.png", "--output", str(tmp_path))
    changed = [*arguments(folder, *more)[:-1], f"{tmp_path}/other.pth"]
    assert "other weights" in error_of(capsys, demo, changed)
    assert len(LogitStatistics.load(folder / "stats.safetensors").class_names) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--input", "a.jpg"], "give --output PATH, --show, or both"),
        (["--input", "a.jpg", "--webcam", "--show"], "not allowed with"),
        (["--webcam", "--show", "--confidence-threshold", "50"], "not a score between 0 and 1"),
    ],
)
def test_wrong_command_lines(
    demo: ModuleType, capsys: pytest.CaptureFixture, more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ending:
        demo.parse_args(["--config-file", "c.yaml", *more])
    assert ending.value.code == 2 and message in capsys.readouterr().err
