"""Imports only go down, and the lowest layers need little besides numpy and torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import logn_d2

PACKAGE = Path(logn_d2.__file__).parent
REPOSITORY = PACKAGE.parent
SCRIPTS = ("train_net", "tools", "benchmarks")

# Layer -> the layers that it may import. "logn_d2" is the package's own __init__, which holds the
# version and loads other names on first use.
BELOW = {
    "logn_d2": set(),
    "errors": set(),
    "files": set(),
    "frequency": set(),
    "results": {"files", "frequency"},
    "progress": set(),
    "provenance": set(),
    "annotations": set(),
    "lvis": {"files", "frequency", "annotations"},
    "analysis": {"files", "frequency", "lvis"},
    "core": {"files", "frequency"},
    "data": {"files", "frequency", "annotations", "core", "source"},
    "glyphs": {"files", "frequency", "data"},
    "modeling": {"files", "core", "data", "sites", "source"},
    "ood": set(),
    "sites": {"core"},
    "classification": {
        "analysis",
        "files",
        "frequency",
        "lvis",
        "core",
        "data",
        "glyphs",
        "modeling",
        "ood",
        "passes",
        "sites",
        "source",
    },  # fmt: skip
    "lazy": {"sites"},
    "source": {"core", "lazy"},
    "config": {"classification", "modeling"},  # only registration
    "passes": {"files", "core", "data"},
    "collection": {"files", "core", "data", "modeling", "passes", "sites"},
    "evaluators": {"files", "frequency", "lvis", "analysis", "data", "modeling", "passes"},
    "sweeps": {"files", "lvis", "analysis", "core", "data", "modeling", "ood", "passes", "sites"},
    "pictures": {"core", "modeling", "sites", "sweeps"},
    "report": {
        "analysis",
        "annotations",
        "classification",
        "files",
        "frequency",
        "core",
        "data",
        "lvis",
        "modeling",
        "ood",
        "progress",
        "results",
        "sweeps",
    },  # fmt: skip
}
BELOW["engine"] = set(BELOW) - {"report"}
BELOW["commands"] = set(BELOW)
BELOW["evaluation"] = set(BELOW)  # old names alone
BELOW["cli"] = {"commands"}
BELOW["__main__"] = {"cli"}
# Layers -> what they may import of other packages: people with another framework use them.
MAY_IMPORT = {
    "core": {"torch", "numpy", "safetensors"},
    "lvis": {"numpy", "pycocotools", "tabulate"},
    "analysis": {"numpy", "tabulate"},
    "ood": {"numpy"},
}


def module_name(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source, module, is_package=False):
    """Full names of everything that a source imports, inside functions too."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield node.args[0].value


def layer_of(name):
    """The layer of a full name, None for other packages."""
    root, *rest = name.split(".")
    if root in SCRIPTS:
        return "scripts"
    if root != "logn_d2":
        return None
    home = logn_d2._HOMES.get(rest[0] if rest else "", name)
    layer = [*home.split("."), ""][1]
    return layer if layer in BELOW else "logn_d2"


def sources():
    paths = sorted(PACKAGE.rglob("*.py"))
    return [pytest.param(path, id=str(path.relative_to(PACKAGE))) for path in paths]


@pytest.mark.parametrize("path", sources())
def test_imports_go_down_only(path):
    module = module_name(path)
    if module == "logn_d2":  # what editors see; at run time nothing is loaded, see below
        return
    layer = layer_of(module)
    allowed = {None, layer, "logn_d2", "errors"} | BELOW[layer]
    names = imports_of(path.read_text(), module, path.name == "__init__.py")
    up = sorted(name for name in names if layer_of(name) not in allowed)
    assert not up, f"{module} ({layer}) may import {sorted(BELOW[layer])}, but imports {up}"


def loaded_imports(path):
    """Without those that only type checkers see."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return imports_of(ast.unparse(tree), module_name(path), path.name == "__init__.py")


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_layers_for_other_frameworks_import_little(layer):
    allowed = MAY_IMPORT[layer] | {"logn_d2", *sys.stdlib_module_names}
    wrong = {
        (path.name, name)
        for path in (PACKAGE / layer).rglob("*.py")
        for name in loaded_imports(path)
        if name.split(".")[0] not in allowed
    }
    # The official implementation, for those who ask for it.
    assert wrong <= {
        ("engines.py", "lvis.LVIS"),
        ("engines.py", "lvis.LVISEval"),
        ("engines.py", "lvis.LVISResults"),
    }


def test_every_module_has_a_layer():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert (folders | files) - {"configs"} <= set(BELOW)


def run_python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


@pytest.fixture(scope="module")
def without_detectron2():
    """What an interpreter prints in which torch, numpy and safetensors are all that there is."""
    code = """
import sys
blocked = ("detectron2", "fvcore", "cv2", "matplotlib", "lvis", "torchvision", "pycocotools",
           "PIL", "scipy", "omegaconf", "yacs", "iopath")
for name in blocked:
    sys.modules[name] = None  # an import of it raises ImportError
import torch
import logn_d2.core
from logn_d2 import AffineCalibration, LogitMoments, LogitStatistics, logn
stage = logn_d2.core.StageStatistics(
    torch.tensor([-2.0, 1.0]), torch.tensor([4.0, 1.0]), torch.tensor([9, 9]))
print(logn(stage)(torch.ones(1, 2)).tolist())
try:
    from logn_d2 import attach
except ImportError as error:
    print(error)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_core_works_without_detectron2_and_all_else(without_detectron2):
    assert without_detectron2[0] == "[[0.5, 1.0]]"


def test_without_detectron2_its_names_name_the_package_to_install(without_detectron2):
    assert "Install Detectron2" in "\n".join(without_detectron2[1:])


def test_lvis_ap_and_its_analyses_work_without_torch_and_detectron2():
    code = """
import sys
for name in ("torch", "detectron2", "fvcore", "cv2", "lvis", "safetensors", "yacs", "iopath"):
    sys.modules[name] = None
from logn_d2.analysis import bootstrap_lvis, calibration_quality, error_analysis
from logn_d2.lvis import Detections, LvisGroundTruth, evaluate_lvis, match_lvis
box = [0, 0, 4, 4]
truth = LvisGroundTruth.from_dict({
    "images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}]})
found = Detections([1], [0], [0.9], [box])
print(evaluate_lvis(truth, found).metrics["AP"])
bootstrap_lvis(match_lvis(truth, found), resamples=2)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) > 0.99


def test_importing_the_package_loads_nothing_else():
    heavy = ("torch", "numpy", "detectron2", "cv2", "matplotlib", "lvis")
    result = run_python(f"import sys, logn_d2; print([n for n in {heavy} if n in sys.modules])")
    assert result.stdout.strip() == "[]", result.stderr


def test_matplotlib_is_left_to_those_who_draw_and_lvis_api_to_nobody():
    code = """
import sys
sys.modules["lvis"] = None
import logn_d2.engine, logn_d2.evaluators.lvis_form, logn_d2.lvis.evaluate
import logn_d2.commands.run, logn_d2.commands.sweep, logn_d2.commands.trends
print("matplotlib" in sys.modules)
"""
    result = run_python(code)
    assert result.stdout.strip() == "False", result.stderr


def test_editors_see_every_exported_name():
    block = next(
        node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.If)
    )  # fmt: skip
    seen = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert seen | {"__version__"} == set(logn_d2.__all__) == {*logn_d2._HOMES, "__version__"}


@pytest.mark.parametrize(
    ("source", "layer"),
    [
        ("from ..sweeps import sweep", "sweeps"),
        ("from .. import sweeps", "sweeps"),
        ("from .. import attach", "modeling"),
        ("from .. import __version__", "logn_d2"),
        ("from . import affine", "core"),
        ("from .affine import AffineCalibration", "core"),
        ("import logn_d2.engine.trainer as t", "engine"),
        ("from logn_d2 import engine", "engine"),
        ("def f():\n    from logn_d2.modeling import attach", "modeling"),
        ("if TYPE_CHECKING:\n    from ..data import registration", "data"),
        ("importlib.import_module('logn_d2.report')", "report"),
        ("from tools import fold_calibration", "scripts"),
        ("import torch", None),
    ],
)
def test_the_walk_sees_every_form_of_import(source, layer):
    (name,) = imports_of(source, "logn_d2.core.module")
    assert layer_of(name) == layer
