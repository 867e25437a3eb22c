"""A LazyConfig behind a config node, so that every command takes both kinds of config.

Commands read their settings from a `CfgNode`. For a LazyConfig, `fill_from_lazy` writes the
settings that they need into one. What only a LazyConfig can describe (model, mappers, sampler,
optimizer, schedule), `logn_d2.source` instantiates from the LazyConfig itself.

A LazyConfig is Python code and runs when it is read: read only what you trust.
"""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, LazyConfig
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import MissingFileError, UserError
from .sites import config_site

# Keys that a command may set beside a LazyConfig, because no part of it defines them.
_OWN_KEYS = re.compile(
    r"MODEL\.LOGN\.(?!LAZY|CLASSIFIER|LOSS|TEMPERATURE|SECOND_STAGE|MEMORY|BACKBONE|IMAGE\.(?!DATA))"
    r"|(MODEL\.WEIGHTS|MODEL\.DEVICE|OUTPUT_DIR|DATASETS\.TEST|SEED)$"
)
_OVERRIDE = re.compile(r"\+?[a-z_]\w*(\.\w+)+=")


def lazy_config(cfg: CfgNode) -> DictConfig:
    """A copy of the LazyConfig that describes the model, with its overrides.

    Raises:
        ValueError: the file has changed since the config node was filled from it.
    """
    node = cfg.MODEL.LOGN.LAZY
    config = _read(node.FILE, tuple(node.OVERRIDES))
    if node.DIGEST != _digest(config):
        raise UserError(
            f"{node.FILE} has changed since {cfg.OUTPUT_DIR} was made from it. Restore the file, "
            "or begin a new run with another output folder."
        )
    return copy.deepcopy(config)


def split_lazy_overrides(opts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate a command's last arguments into overrides of a LazyConfig and KEY VALUE pairs.

    Raises:
        ValueError: a pair sets a key that the LazyConfig defines.

    Example:
        >>> split_lazy_overrides(["train.max_iter=90", "MODEL.LOGN.CALIBRATION", "auto"])
        (['train.max_iter=90'], ['MODEL.LOGN.CALIBRATION', 'auto'])
    """
    overrides, pairs, rest = [], [], list(opts)
    while rest:
        key = rest.pop(0)
        if _OVERRIDE.match(key):
            overrides.append(key)
            continue
        if not _OWN_KEYS.match(key):
            raise UserError(
                f"{key} has no effect beside a LazyConfig, which sets it. Override it as in "
                "model.roi_heads.num_classes=20, without spaces."
            )
        pairs += [key, *rest[:1]]
        del rest[:1]
    return overrides, pairs


def fill_from_lazy(cfg: CfgNode, file: str | os.PathLike[str], overrides: Sequence[str]) -> None:
    """Write the settings of a LazyConfig into a config node.

    Args:
        cfg (CfgNode): with MODEL.LOGN, changed in place.
        file (PathLike): the LazyConfig, with ``model``, ``dataloader`` and ``train`` as in
            Detectron2's model zoo.
        overrides (Sequence[str]): such as "model.roi_heads.num_classes=20".

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a part is missing, or of a kind that the commands can't use.
    """
    node = cfg.MODEL.LOGN.LAZY
    node.FILE, node.OVERRIDES = os.path.abspath(file), list(overrides)
    config = _read(node.FILE, tuple(overrides))
    missing = [part for part in ("model", "dataloader", "train") if part not in config]
    if missing:
        raise UserError(
            f"{file} has no '{missing[0]}'. A LazyConfig for commands has model, dataloader and "
            "train, as in Detectron2's model zoo, and optimizer and lr_multiplier to train."
        )
    try:
        _fill_model(cfg, config.model)
        _fill_data(cfg, config.dataloader)
        _fill_training(cfg, config.train)
    except OmegaConfBaseException as error:  # an absent key, or an interpolation of one
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{file} lacks a setting that commands need ({reason}). Set it as in Detectron2's "
            "model zoo."
        ) from error
    node.DIGEST = _digest(config)


def check_lazy_training(config: DictConfig, file: str) -> None:
    """Check that commands can train a LazyConfig's model with its settings.

    Raises:
        ValueError: the optimizer or the schedule is missing, or weights would be averaged.
    """
    for part in ("optimizer", "lr_multiplier"):
        if part not in config:
            raise UserError(f"{file} has no '{part}', which training needs.")
    if OmegaConf.select(config, "train.model_ema.enabled"):
        raise UserError(
            "train.model_ema.enabled is True, but `logn train` does not average weights. Set it to "
            "False, or train with Detectron2's tools/lazyconfig_train_net.py and then run "
            "`logn collect`."
        )


def target_of(call: Mapping[str, Any]) -> Callable[..., Any]:
    """The class or function that a LazyCall calls."""
    target = call["_target_"]
    return locate(target) if isinstance(target, str) else target


@functools.lru_cache(maxsize=2)
def _read(file: str, overrides: tuple[str, ...]) -> DictConfig:
    if not os.path.isfile(file):
        raise MissingFileError(f"There is no config {file}.")
    try:
        config = LazyConfig.load(file)
    except SyntaxError as error:
        raise UserError(f"{file} is not valid Python ({error}).") from error
    _check_keys(config, overrides)
    return _overridden(config, overrides, file) if overrides else config


def _overridden(config: DictConfig, overrides: Sequence[str], file: str) -> DictConfig:
    # Imported here, as Detectron2 does: hydra takes a second, and few commands have overrides.
    from hydra.errors import HydraException

    try:
        return LazyConfig.apply_overrides(config, [each.lstrip("+") for each in overrides])
    except HydraException as error:
        raise UserError(
            f"An override of {file} is not a valid KEY=VALUE ({str(error).splitlines()[0]}). Quote "
            "lists and strings for the shell: 'model.pixel_std=[1.0,1.0,1.0]'."
        ) from error


def _check_keys(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse overrides of keys that do not exist: they would be added and have no effect."""
    for override in overrides:
        key = override.partition("=")[0]
        if key.startswith("+") or OmegaConf.select(config, key, default=_MISSING) is not _MISSING:
            continue
        near = difflib.get_close_matches(key, _keys(config), n=1)
        raise UserError(
            f"The LazyConfig has no key {key}{f'; is it {near[0]}?' if near else '.'} To add it, "
            f"write +{override}"
        )


_MISSING = object()


def _keys(config: DictConfig, above: str = "") -> list[str]:
    found = []
    for key in config:
        found.append(f"{above}{key}")
        if OmegaConf.is_dict(inner := config._get_node(key)):
            found += _keys(inner, f"{above}{key}.")
    return found


def _digest(config: DictConfig) -> str:
    """A hash of the model and its data loaders: 16 hexadecimal digits."""
    # Schedule, optimizer and number of workers do not change what weights or statistics mean.
    content = OmegaConf.to_container(config)
    content = {part: content[part] for part in ("model", "dataloader")}
    for loader in ("train", "test"):
        content["dataloader"][loader].pop("num_workers", None)
    text = json.dumps(content, sort_keys=True, default=_as_text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_text(value: object) -> object:
    """A text that is the same in every process, without addresses in memory."""
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    return [type(value).__qualname__, re.sub(r" at 0x[0-9a-f]+", "", repr(value))]


def _fill_model(cfg: CfgNode, model: DictConfig) -> None:
    cfg.MODEL.META_ARCHITECTURE = target_of(model).__name__
    heads = model.get("roi_heads")
    owner = model if heads is None else heads
    num_classes = owner.get("num_classes", OmegaConf.select(owner, "head.num_classes"))
    if num_classes is None:
        raise UserError(
            f"The LazyConfig's {cfg.MODEL.META_ARCHITECTURE} has neither roi_heads.num_classes nor "
            "num_classes nor head.num_classes, so commands can't know its classes. Use "
            "logn_d2.collect and logn_d2.attach in Python."
        )
    site = config_site(cfg)
    predictor = owner
    if heads is not None:
        cfg.MODEL.ROI_HEADS.NAME = target_of(heads).__name__
        cfg.MODEL.MASK_ON = heads.get("mask_head") is not None
        cfg.MODEL.KEYPOINT_ON = heads.get("keypoint_head") is not None
        predictors = heads.get("box_predictors")
        predictor = heads.box_predictor if predictors is None else predictors[0]
    else:
        cfg.MODEL.MASK_ON = False
    _set(cfg, site.num_classes, num_classes)
    _set(cfg, site.score_threshold, float(_argument(predictor, "test_score_thresh", 0.0)))
    detections = _argument(predictor, "test_topk_per_image", None)
    cfg.TEST.DETECTIONS_PER_IMAGE = (
        _argument(predictor, "max_detections_per_image", detections) or 0
    )
    if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
        cfg.MODEL.LOGN.COLLECT.POPULATION = "images"


def _fill_data(cfg: CfgNode, dataloader: DictConfig) -> None:
    names = {}
    for split in ("train", "test"):
        dataset = OmegaConf.select(dataloader, f"{split}.dataset")
        if dataset is None or target_of(dataset).__name__ != "get_detection_dataset_dicts":
            raise UserError(
                f"The LazyConfig's dataloader.{split}.dataset does not call "
                "get_detection_dataset_dicts(names=...), so commands do not know the data set. "
                "Register it and name it there."
            )
        names[split] = (dataset.names,) if isinstance(dataset.names, str) else tuple(dataset.names)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = names["train"], names["test"]
    train, test = dataloader.train, dataloader.test
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = train.dataset.get("filter_empty", True)
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = train.dataset.get("min_keypoints", 0)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = train.get("aspect_ratio_grouping", True)
    cfg.DATALOADER.NUM_WORKERS = train.get("num_workers", 0)
    cfg.SOLVER.IMS_PER_BATCH = train.total_batch_size
    cfg.INPUT.FORMAT = test.mapper.image_format
    cfg.INPUT.MASK_FORMAT = train.mapper.get("instance_mask_format", "polygon")
    augmentations = train.mapper.get("augmentations", ())
    cfg.INPUT.CROP.ENABLED = any("Crop" in target_of(each).__name__ for each in augmentations)
    _fill_sampler(cfg, train.get("sampler"))


def _fill_sampler(cfg: CfgNode, sampler: DictConfig | None) -> None:
    if sampler is None:
        cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
        return
    cfg.DATALOADER.SAMPLER_TRAIN = target_of(sampler).__name__
    factors = sampler.get("repeat_factors")
    if factors is not None:
        cfg.DATALOADER.REPEAT_THRESHOLD = factors.repeat_thresh
        if "sqrt" in factors:
            cfg.DATALOADER.REPEAT_SQRT = factors.sqrt


def _fill_training(cfg: CfgNode, train: DictConfig) -> None:
    cfg.OUTPUT_DIR = train.output_dir
    cfg.MODEL.WEIGHTS = train.get("init_checkpoint", "") or ""
    cfg.MODEL.DEVICE = train.get("device", "cuda")
    cfg.SOLVER.MAX_ITER = train.max_iter
    cfg.SOLVER.CHECKPOINT_PERIOD = OmegaConf.select(train, "checkpointer.period", default=5000)
    cfg.SOLVER.AMP.ENABLED = bool(OmegaConf.select(train, "amp.enabled", default=False))
    cfg.TEST.EVAL_PERIOD = train.get("eval_period", 0)
    cfg.SEED = train.get("seed", -1)


def _argument(call: DictConfig, name: str, default: Any) -> Any:
    """An argument of a LazyCall, or the default in its target's signature."""
    if name in call:
        return call[name]
    parameter = inspect.signature(target_of(call)).parameters.get(name)
    known = parameter is not None and parameter.default is not inspect.Parameter.empty
    return parameter.default if known else default


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    *nodes, last = key.split(".")
    setattr(functools.reduce(getattr, nodes, cfg), last, value)
