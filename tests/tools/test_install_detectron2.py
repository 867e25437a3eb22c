"""Tests of tools/install_detectron2.py; none of them needs the network."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import io
import re
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from ..load_script import load_script

SCRIPT = Path(__file__).parents[2] / "tools" / "install_detectron2.py"


script = load_script("tools/install_detectron2.py")


def _is_our_build() -> bool:
    spec = importlib.util.find_spec("detectron2")
    try:
        installed = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return False
    # Another Detectron2, say on PYTHONPATH, may stand before the one that is installed.
    imported = spec is not None and Path(spec.origin or "") == Path(
        str(installed.locate_file("detectron2/__init__.py"))
    )
    return imported and f"+{script.LOCAL_LABEL}." in installed.version


our_build = pytest.mark.skipif(not _is_our_build(), reason="Detectron2 is the user's own")


def _write_sdist(path: Path, files: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"detectron2_cdo-0.5/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def small_sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source distribution of a few lines, with one patch row that fits it."""
    path = tmp_path / "small.tar.gz"
    files = {
        "LICENSE": "licence",
        "setup.py": "raise SystemExit('never run')",
        "detectron2/__init__.py": '__version__ = "0.5"\n',
        "detectron2/masks.py": "a = np.bool\nb = np.bool_\nc = np.float32\nd = np.float\n",
        "detectron2/model_zoo/configs/Base.yaml": "VERSION: 2\n",
        "projects/PointRend/point_rend/__init__.py": "",
        "projects/PointRend/train_net.py": "",
    }
    _write_sdist(path, files)
    row = next(p for p in script.PATCHES if "aliases of the Python builtins" in p.reason)
    row = script.Patch(row.reason, row.files, row.pattern, row.replacement, 2)
    monkeypatch.setattr(script, "PATCHES", (row,))
    monkeypatch.setattr(script, "SDIST_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_wheel_holds_package_projects_and_configs_but_not_setup(
    small_sdist: Path, tmp_path: Path
) -> None:
    wheel = script.build_wheel(tmp_path / "out", small_sdist)
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == {
        "detectron2/__init__.py",
        "detectron2/_C.py",
        "detectron2/masks.py",
        "detectron2/model_zoo/configs/Base.yaml",
        "detectron2/projects/point_rend/__init__.py",
    }


def test_only_builtin_aliases_are_replaced_and_changed_files_are_marked(
    small_sdist: Path, tmp_path: Path
) -> None:
    archive = zipfile.ZipFile(script.build_wheel(tmp_path / "out", small_sdist))
    text = archive.read("detectron2/masks.py").decode()
    assert text == script.NOTICE + "a = bool\nb = np.bool_\nc = np.float32\nd = float\n"
    assert not archive.read("detectron2/__init__.py").decode().startswith(script.NOTICE)


def test_the_same_source_gives_the_same_wheel(small_sdist: Path, tmp_path: Path) -> None:
    first = script.build_wheel(tmp_path / "first", small_sdist)
    second = script.build_wheel(tmp_path / "second", small_sdist)
    assert first.read_bytes() == second.read_bytes()


def test_metadata_names_requirements_without_addresses(small_sdist: Path, tmp_path: Path) -> None:
    archive = zipfile.ZipFile(script.build_wheel(tmp_path / "out", small_sdist))
    name = next(n for n in archive.namelist() if n.endswith("/METADATA"))
    text = archive.read(name).decode()
    assert "Name: detectron2\n" in text
    assert f"Version: {script.wheel_version()}\n" in text
    assert "://" not in text and "@" not in text


def test_pip_accepts_the_wheel(small_sdist: Path, tmp_path: Path) -> None:
    wheel = script.build_wheel(tmp_path / "out", small_sdist)
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True)
    assert (target / "detectron2" / "masks.py").is_file()


def test_another_file_than_the_pinned_one_is_refused(small_sdist: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tar.gz"
    other.write_bytes(small_sdist.read_bytes() + b"x")
    with pytest.raises(ValueError, match="expected " + script.SDIST_SHA256):
        script.build_wheel(tmp_path / "out", other)


def test_a_patch_that_meets_another_number_of_places_is_an_error() -> None:
    files = {"detectron2/data/x.py": b"Image.LINEAR, Image.LINEAR"}
    with pytest.raises(ValueError, match="met 2 places"):
        script.apply_patches(files)


def test_version_changes_with_the_patch_table(monkeypatch: pytest.MonkeyPatch) -> None:
    before = script.wheel_version()
    monkeypatch.setattr(script, "PATCHES", script.PATCHES[1:])
    assert script.wheel_version() != before


@pytest.mark.parametrize("present", ["0.6", "0.5+cu111", "unknown"])
def test_somebody_elses_detectron2_is_left_alone(
    present: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing may be built or installed")

    monkeypatch.setattr(script, "installed_version", lambda: present)
    monkeypatch.setattr(script, "build_wheel", fail)
    assert present in script.ensure_detectron2()


def test_command_line_reports_a_missing_file(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--wheel-dir", str(tmp_path)]
    command += ["--sdist", str(tmp_path / "none.tar.gz")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "none.tar.gz" in result.stderr and "Traceback" not in result.stderr


@our_build
def test_every_patch_took_effect_in_the_installed_package() -> None:
    import detectron2

    root = Path(detectron2.__file__).parents[1]
    files = {
        str(path.relative_to(root).as_posix()): path.read_text()
        for path in Path(detectron2.__file__).parent.rglob("*.py")
    }
    assert importlib.metadata.version("detectron2") == script.wheel_version()
    for patch in script.PATCHES:
        chosen = [files[name] for name in fnmatch.filter(files, patch.files)]
        literal = re.sub(r"\\g<0>|\\1", "", patch.replacement).replace(r"\n", "\n")
        assert any(text.startswith(script.NOTICE) and literal in text for text in chosen), patch
        # A row without a back-reference leaves nothing behind that it would match again.
        if not re.search(r"\\g|\\1", patch.replacement):
            assert not any(re.search(patch.pattern, t, re.MULTILINE) for t in chosen), patch


@our_build
def test_compiled_operators_raise_a_clear_error() -> None:
    import torch
    from detectron2 import _C
    from detectron2.structures import RotatedBoxes, pairwise_iou_rotated

    boxes = RotatedBoxes(torch.tensor([[5.0, 5.0, 4.0, 4.0, 30.0]]))
    with pytest.raises(ImportError, match=r"box_iou_rotated.*compiled operator"):
        pairwise_iou_rotated(boxes, boxes)
    assert not _C.has_cuda()


@our_build
def test_model_zoo_configs_are_installed() -> None:
    from detectron2 import model_zoo

    cfg = model_zoo.get_config("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1203


@our_build
def test_environment_report_works_without_compiled_operators() -> None:
    from detectron2.utils.collect_env import collect_env_info

    assert "pure-Python build" in collect_env_info()


@our_build
@pytest.mark.parametrize("name", ["GeneralizedRCNN", "cascade"])
def test_inference_runs_on_cpu_without_a_warning(name: str) -> None:
    import torch
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    config = {
        "GeneralizedRCNN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        "cascade": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    }[name]
    cfg = model_zoo.get_config(config)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build_model(cfg).eval()
        with torch.no_grad():
            outputs = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
    assert "instances" in outputs[0]
