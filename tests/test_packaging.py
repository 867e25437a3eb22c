"""Tests of the installation: version, requirements, the wheel and its config files."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _setup_tree() -> ast.Module:
    return ast.parse((ROOT / "setup.py").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy so that the tree stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("logn_d2", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True)
    return next(folder.glob("logn_d2-*.whl"))


def test_public_names_import() -> None:
    import logn_d2

    for name in logn_d2.__all__:
        assert getattr(logn_d2, name) is not None


def test_setup_does_not_import_torch() -> None:
    imported: set[str] = set()
    for node in ast.walk(_setup_tree()):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= {"ast", "pathlib", "setuptools"}


def test_version_is_written_once(wheel: Path) -> None:
    import logn_d2

    assert wheel.name.startswith(f"logn_d2-{logn_d2.__version__}-py3-none-any")
    assert logn_d2.__version__ not in (ROOT / "setup.py").read_text()


def test_wheel_holds_every_module_and_every_config(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "logn_d2").rglob("*.py")}
    configs = {
        "logn_d2/" + p.relative_to(ROOT).as_posix()
        for p in (ROOT / "configs").rglob("*")
        if p.suffix in (".yaml", ".py")
    }
    assert modules, "the package has no modules"
    assert configs, "configs/ has no files"
    assert modules | configs <= names
    assert not any(name.startswith(("tests/", "configs/", "tools/")) for name in names)


def test_wheel_installs_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    name = next(n for n in archive.namelist() if n.endswith("/entry_points.txt"))
    assert "logn = logn_d2.cli:main" in archive.read(name).decode()


def test_requirements_are_names_from_the_package_index(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    text = archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))).decode()
    header = text.partition("\n\n")[0]
    required = re.findall(r"^Requires-Dist: ([\w-]+)(.*)$", header, re.MULTILINE)
    core = {name for name, rest in required if "extra ==" not in rest}
    assert {"torch", "torchvision", "fvcore", "numpy", "opencv-python", "lvis"} <= core
    assert "detectron2" not in {name for name, _ in required}
    assert not any("@" in rest for _, rest in required)
    for extra in ("report", "plots", "dev"):
        assert f"Provides-Extra: {extra}" in header
    # What a module imports when it is loaded, pip has installed, or Detectron2 has brought along.
    canonical = {"cv2": "opencv-python", "PIL": "Pillow"}
    known = {*core, "detectron2", "logn_d2", *sys.stdlib_module_names}
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "logn_d2").rglob("*.py")
        for name in _loaded_with(path)
        if canonical.get(name, name) not in known
        and not (name in ("matplotlib", "jinja2", "markupsafe") and "report" in path.parts)
    }
    assert not missing


def test_every_requirement_is_imported() -> None:
    call = next(node for node in ast.walk(_setup_tree()) if isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "setup")  # fmt: skip
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    required = {re.split("[<>=]", name)[0] for name in ast.literal_eval(given["install_requires"])}
    imported = set()
    for path in (ROOT / "logn_d2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    modules = {"opencv-python": "cv2", "Pillow": "PIL"}
    assert {name for name in required if modules.get(name, name) not in imported} == set()


def _loaded_with(path: Path) -> set[str]:
    """Packages that a module imports outside its functions, by their first names."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_every_requirement_is_locked() -> None:
    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = [line.split("==")[0] for line in lines if not line.startswith("#")]
    locked = {canonical(name) for name in pinned}
    required = {
        canonical(re.split(r"[<>=!]", element.value)[0])
        for node in ast.walk(_setup_tree())
        if isinstance(node, ast.List)
        for element in node.elts
        if isinstance(element, ast.Constant) and re.match(r"^[a-z-]+(>=[\d.]+)?$", element.value)
    }
    assert {"torch", "torchvision"} <= locked
    assert required <= locked
    assert all("==" in line for line in lines if not line.startswith("#"))


def test_no_file_names_a_package_index() -> None:
    names = ("Makefile", "requirements.lock", "setup.py", "pyproject.toml", ".ci/run")
    for name in (*names, "tools/install_detectron2.py"):
        assert not re.search(r"://|--[a-z-]*index-|--find-", (ROOT / name).read_text()), name
