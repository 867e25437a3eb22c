"""Read the config of a command line and register its data sets."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg

from ..classification import register_image_sets
from ..config import add_logn_config
from ..data import register_from_config
from ..errors import UserError
from ..glyphs import register_glyphs
from ..lazy import fill_from_lazy, split_lazy_overrides
from ..source import source_of


def load_config(
    config_file: str | os.PathLike[str], opts: Sequence[str] = (), imports: Sequence[str] = ()
) -> CfgNode:
    """Read a config, and register LT-Glyphs and the data sets that the config names.

    Without CUDA the device becomes the CPU.

    Args:
        config_file (PathLike): a YAML file, for example from `logn_d2.config_file`, or a LazyConfig
            (.py).
        opts (Sequence[str]): KEY VALUE pairs that override it; for a LazyConfig, overrides such as
            "train.max_iter=90", and KEY VALUE pairs of MODEL.LOGN.
        imports (Sequence[str]): modules to import first, which register the user's own heads or
            data sets; they may be in the current folder.

    Returns:
        CfgNode: not frozen.

    Raises:
        ValueError: a key does not exist, or a data set is already registered with other files.
        FileNotFoundError: there is no such file.
    """
    # First, since a module may register heads, data sets or config keys that the file names.
    import_modules(imports)
    cfg = get_cfg()
    add_logn_config(cfg)
    register_glyphs()
    try:
        if os.fspath(config_file).endswith(".py"):
            overrides, opts = split_lazy_overrides(opts)
            fill_from_lazy(cfg, config_file, overrides)
        else:
            cfg.merge_from_file(os.fspath(config_file))
        cfg.merge_from_list(list(opts))
    except AssertionError as error:  # yacs raises it for a key that does not exist
        raise UserError(f"{error} Check {config_file} and the KEY VALUE pairs.") from error
    # Detectron2's default is cuda; without it every command works on the CPU.
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    source_of(cfg)  # the config of a run may name a LazyConfig, which may register data sets
    register_from_config(cfg)
    register_image_sets(cfg)
    return cfg


def import_modules(names: Sequence[str]) -> None:
    """Import modules of the user, which may be in the current folder.

    Raises:
        ValueError: there is no such module.
    """
    here = os.getcwd()
    for name in names:
        sys.path.insert(0, here)  # as `python -m` does, and an installed command does not
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0]:
                raise  # a mistake inside the module
            raise UserError(
                f"There is no module '{name}' to import. Give the name of a Python file in the "
                "current folder without .py, or of an installed package."
            ) from error
        finally:
            sys.path.remove(here)
