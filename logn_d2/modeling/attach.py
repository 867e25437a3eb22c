"""Attaching calibrations to existing detectors, and detaching them.

A calibration is attached where a model turns logits into probabilities: `predict_probs` of each box
predictor in Detectron2, `postprocess_detections` of the RoI heads in torchvision. Only the method
of the instance is overridden, not the class. The calibration becomes a submodule, so that it
follows the model through ``.to()``, copies and pickling, but it is not part of the state dict.

Shapes: K foreground classes, C = K + 1 logit columns, S cascade stages.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ..core import AffineCalibration, CountsSource, LogitStatistics
from ..core.affine import Background
from ..errors import UserError
from ..sites import CHILD, CalibrationHook, ClassLayers, LogitSite, attached_layers, known_site
from .box_predictors import (
    background_of,
    check_calibratable,
    find_box_predictors,
    has_sigmoid_scores,
    num_classes_of,
    predictor_fingerprint,
    unwrapped,
)
from .calibrated import CalibratedPredictor
from .weights_guard import WeightsGuard, guarded_calibrations

logger = logging.getLogger(__name__)

Source = (
    str | os.PathLike | LogitStatistics | AffineCalibration | Sequence[AffineCalibration] | None
)


def attach(
    model: nn.Module,
    source: Source = None,
    *,
    calibration: Source = None,
    statistics: str | os.PathLike | LogitStatistics | None = None,
    counts: CountsSource = None,
    strict: bool = True,
    class_names: Sequence[str] | None = None,
    replace: bool = False,
    site: LogitSite | None = None,
) -> Attachment:
    """Calibrate every box predictor of a model, or its classification site, in place.

    Works for Detectron2's heads (Standard, Cascade, Res5 and their subclasses, from a config or a
    LazyConfig), for torchvision's Faster, Mask and Keypoint R-CNN, for the detectors in
    docs/sites.md, and for any other with a description of its site. Load the weights before.

    Args:
        model (nn.Module): a detector, distributed or not.
        source: a statistics file or its content, for LogN; a calibration such as
            "norcal(gamma=0.6)" or "logn(beta=mean)"; or an AffineCalibration, or a list of them,
            one per box predictor (S).
        calibration: a calibration, if ``source`` is a statistics file or omitted.
        statistics: a statistics file or its content, if ``source`` is a calibration.
        counts (ClassCounts): counts of the training set, for calibrations that need them.
        strict (bool): False skips the check that the statistics belong to exactly these weights.
        class_names (Sequence[str]): K names to compare with those of the statistics.
        replace (bool): True replaces an attached calibration.
        site (LogitSite): description of the logits in a model unknown to logn_d2.

    Returns:
        Attachment: its `detach()`, or the end of a ``with`` block, undoes the call.

    Raises:
        FileNotFoundError: the statistics file does not exist.
        ValueError: the model has no box predictor or already has a calibration, or this one does
            not fit: other classes, stages, class names or weights, or a loss whose logits can't be
            calibrated. The model is unchanged then.

    Example:
        >>> import torch
        >>> from detectron2.modeling.box_regression import Box2BoxTransform
        >>> from detectron2.modeling.roi_heads import FastRCNNOutputLayers
        >>> transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
        >>> predictor = FastRCNNOutputLayers(8, box2box_transform=transform, num_classes=2)
        >>> one_region = (torch.zeros(1, 3), torch.zeros(1, 8)), [range(1)]
        >>> calibration = AffineCalibration(torch.ones(2), torch.tensor([0.0, 1.0]))
        >>> with attach(predictor, calibration):
        ...     predictor.predict_probs(*one_region)[0].argmax().item()
        1
        >>> predictor.predict_probs(*one_region)[0].argmax().item()
        0
    """
    sites = find_sites(model, site)
    check_calibratable(model)
    # Two calibrations at one place would be applied one after the other.
    present = next(filter(None, (calibration_of(site.owner) for site in sites)), None)
    if present is not None and not replace:
        raise UserError(
            f"This model already has the calibration '{present.name}'. Call detach(model) first, "
            "or pass replace=True."
        )
    calibrations, guards = chosen_calibrations(
        sites,
        source,
        calibration,
        statistics,
        counts=counts,
        strict=strict,
        class_names=class_names,
    )
    # All checks come before the first change, so that an error leaves the model as it was.
    check_fit(sites, calibrations)
    # Copies, because the caller's calibrations may be attached to another model, on another device.
    calibrations = [copy.deepcopy(each) for each in calibrations]
    attachment = Attachment(model, calibrations)
    for site in sites:
        release(site.owner)
    for site, each, guard in zip(sites, calibrations, guards):
        _cover(site, each, guard)
    logger.info("Attached %s", attachment.summary)
    return attachment


def detach(model: nn.Module) -> None:
    """Remove the calibrations of a model, which restores its original outputs bit for bit.

    Args:
        model (nn.Module): the model passed to `attach`, or a copy of it.

    Raises:
        ValueError: the model has no calibration.
    """
    # All sites first: `any` over a generator would stop at the first calibration.
    released = [release(site.owner) for site in find_sites(model)]
    if not any(released):
        raise UserError("This model has no calibration attached; there is nothing to detach.")


class Attachment:
    """The calibrations attached to a model; a context manager that detaches them.

    Attributes:
        model (nn.Module): the model.
        calibrations (list[AffineCalibration]): S calibrations, in stage order.
        summary (str): a description in one line.
    """

    def __init__(self, model: nn.Module, calibrations: list[AffineCalibration]) -> None:
        self.model = model
        self.calibrations = calibrations
        first = calibrations[0]
        # A class counts as uncalibrated only if no stage changes it.
        identical = [(each.scale == 1) & (each.shift == 0) for each in calibrations]
        raw = int(torch.stack(identical).all(dim=0).sum())
        self.summary = (
            f"{first.name}: {first.num_classes} classes, {len(calibrations)} stages, "
            f"{raw} classes uncalibrated"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.summary}>"

    def detach(self) -> None:
        """Remove these calibrations if they are still attached; later ones stay."""
        for site in find_sites(self.model):
            # By identity: an equal calibration that was attached later belongs to somebody else.
            if any(calibration_of(site.owner) is each for each in self.calibrations):
                release(site.owner)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()


def calibration_of(predictor: nn.Module) -> AffineCalibration | None:
    """The active calibration of a predictor, from `attach` or from its config, or None."""
    if isinstance(predictor, CalibratedPredictor):
        return predictor.calibration
    return predictor._modules.get(CHILD)


def check_weights(owner: nn.Module) -> None:
    """Check again that a calibration fits, if the classifier's weights have changed.

    Args:
        owner (nn.Module): a module with a calibration; see `Site`.

    Raises:
        StatisticsError: the calibration belongs to other weights.
    """
    if isinstance(owner, CalibratedPredictor):
        guards = [owner.weights_check]
    else:
        covering = (each for each in owner.__dict__.values() if isinstance(each, _CalibratedMethod))
        guards = [each.guard for each in covering]
    # torchvision's scores are made by the heads, and the weights are in their predictor.
    classifier = owner.box_predictor if _is_torchvision_head(owner) else owner
    for guard in guards:
        if guard is not None:
            guard(classifier, calibration_of(owner))
    for hook in _hooks(owner):
        hook.check()


def release(predictor: nn.Module) -> bool:
    """Remove a predictor's calibration; return whether there was one."""
    if calibration_of(predictor) is None:
        return False
    if isinstance(predictor, CalibratedPredictor):
        predictor.calibration = predictor.weights_check = None
        return True
    # All layers of a site share one hook, and releasing it removes it everywhere.
    for hook in _hooks(predictor):
        hook.release()
        return True
    del predictor._modules[CHILD]
    for name, value in list(predictor.__dict__.items()):
        if isinstance(value, _CalibratedMethod):
            del predictor.__dict__[name]
            # What was there before, such as another project's override, comes back.
            if value.covered is not None:
                predictor.__dict__[name] = value.covered
    return True


@dataclass(frozen=True)
class Site:
    """The place where logits become probabilities: the first argument of a module's method.

    With a `ClassLayers` as classifier it is the output of these layers.
    """

    owner: nn.Module
    method: str
    classifier: nn.Module | ClassLayers
    background: Background


class _CalibratedMethod:
    """Overrides a method of one instance: calibrates the first argument and calls the original.

    An object with a reference to its owner instead of a closure, so that a copy of the owner has
    its own.
    """

    def __init__(self, owner: nn.Module, name: str, guard: WeightsGuard | None) -> None:
        self.owner = owner
        self.name = name
        self.guard = guard
        # An override that was already there.
        self.covered: Callable | None = owner.__dict__.get(name)

    def __call__(self, predictions: Any, *args: Any, **kwargs: Any) -> Any:
        # Weights may have been loaded since the last call; without a change this is a comparison of
        # counters.
        check_weights(self.owner)
        calibration = getattr(self.owner, CHILD)
        # torchvision passes the logits alone, Detectron2 logits and deltas.
        if isinstance(predictions, Tensor):
            predictions = calibration(predictions)
        else:
            logits, *others = predictions
            predictions = (calibration(logits), *others)
        # From the class, because the attribute of the instance is this object.
        method = self.covered or partial(getattr(type(self.owner), self.name), self.owner)
        return method(predictions, *args, **kwargs)


def find_sites(model: nn.Module, site: LogitSite | None = None) -> list[Site]:
    """Find where a model turns logits into probabilities, in stage order.

    Args:
        model (nn.Module): a detector, or a part of one.
        site (LogitSite): its site, which skips the search.

    Raises:
        ValueError: the model has no box predictor and no known site.
    """
    # A site described in an earlier `attach` is found through its layers.
    layers = site or attached_layers(model) or known_site(model)
    if layers is not None:
        return [Site(layers.owner, "forward", layers.classifier, layers.background)]
    found = [
        Site(module, "postprocess_detections", module.box_predictor, "first")
        for module in unwrapped(model).modules()
        if _is_torchvision_head(module)
    ]
    return found or [
        Site(predictor, "predict_probs", predictor, background_of(predictor))
        for predictor in find_box_predictors(model)
    ]


def calibrations_at(sites: Sequence[Site], text: str, **options: Any) -> list[AffineCalibration]:
    """One calibration per site, from its text form.

    Args:
        sites (Sequence[Site]): S of them, of a model whose weights are loaded.
        text (str): see `parse_calibration`.
        **options: ``statistics``, ``counts`` and ``class_names`` of `stage_calibrations`.

    Raises:
        ValueError: an input of the calibration is missing or does not fit.
    """
    return _guarded_at(sites, text, **options)[0]


def _guarded_at(
    sites: Sequence[Site], text: str, *, strict: bool = True, **options: Any
) -> tuple[list[AffineCalibration], list[WeightsGuard]]:
    classifiers = [site.classifier for site in sites]
    prints = [predictor_fingerprint(each) for each in classifiers] if strict else ()
    return guarded_calibrations(
        classifiers,
        text,
        strict=strict,
        num_classes=num_classes_of(classifiers[0]),
        background=sites[0].background,
        fingerprints=prints,
        **options,
    )


def _is_torchvision_head(module: nn.Module) -> bool:
    """Recognise the head by its attributes, because importing torchvision's detectors is slow."""
    predictor = getattr(module, "box_predictor", None)
    return (
        callable(getattr(module, "postprocess_detections", None))
        and isinstance(predictor, nn.Module)
        and num_classes_of(predictor) is not None
    )


def _is_list(source: Source) -> bool:
    return isinstance(source, (list, tuple)) and all(
        isinstance(each, AffineCalibration) for each in source
    )


def chosen_calibrations(
    sites: list[Site],
    source: Source,
    calibration: Source = None,
    statistics: str | os.PathLike | LogitStatistics | None = None,
    *,
    counts: CountsSource = None,
    strict: bool = True,
    class_names: Sequence[str] | None = None,
) -> tuple[list[AffineCalibration], list[WeightsGuard | None]]:
    """The calibrations selected by the arguments of `attach` and `fold`.

    Args:
        sites (list[Site]): S sites.
        source, calibration, statistics, counts, strict, class_names: see `attach`.

    Returns:
        tuple[list, list]: S calibrations, and for each the guard of its weights.

    Raises:
        ValueError: several sources of a calibration, none, or an object of another type.
    """
    wanted = [each for each in (source, calibration) if each is not None]
    texts = [each for each in wanted if _is_text(each)]
    made = [each for each in wanted if isinstance(each, AffineCalibration) or _is_list(each)]
    files = [each for each in (*wanted, statistics) if each is not None]
    # By identity: comparing statistics or calibrations with == would compare tensors.
    files = [each for each in files if not any(each is other for other in (*texts, *made))]
    if len(texts) > 1 or len(made) > 1 or len(files) > 1 or (made and (texts or files)):
        raise UserError(
            f"Several calibrations were given: {', '.join(map(_short, wanted))}. Give one "
            "calibration, or statistics with at most one calibration as text."
        )
    if not (texts or made or files):
        raise UserError(
            "No calibration was given. Give a statistics file, a calibration such as "
            "'norcal(gamma=0.6)', or an AffineCalibration."
        )
    if made:
        given = [made[0]] if isinstance(made[0], AffineCalibration) else list(made[0])
        # A calibration given as an object is the caller's own: nobody can tell which weights it
        # belongs to.
        return given, [None] * len(given)
    return _guarded_at(
        sites,
        texts[0] if texts else "logn",
        strict=strict,
        statistics=_read(files[0]) if files else None,
        counts=counts,
        class_names=class_names,
    )


def _is_text(source: Source) -> bool:
    """Whether this is the text of a calibration, and not a file."""
    return (
        isinstance(source, str)
        # A path has a dot or a slash, which no name of a calibration has.
        and re.fullmatch(r"\s*\w+\s*(\(.*\)\s*)?", source, re.DOTALL) is not None
        # A file named like a calibration is a file: whoever made it meant it.
        and not os.path.exists(source)
    )


def _short(source: Source) -> str:
    return repr(source) if isinstance(source, str) else type(source).__name__


def _read(source: str | os.PathLike | LogitStatistics) -> LogitStatistics:
    if isinstance(source, LogitStatistics):
        return source
    if isinstance(source, (str, os.PathLike)):
        # Paths as in the rest of Detectron2, remote ones included.
        return LogitStatistics.load(PathManager.get_local_path(os.fspath(source)))
    raise UserError(
        f"Can't attach a {type(source).__name__}. Give the path of a statistics file, a "
        "LogitStatistics, an AffineCalibration, or a list with one per stage."
    )


def check_fit(sites: list[Site], calibrations: list[AffineCalibration]) -> None:
    """Check that calibrations are for these sites.

    Raises:
        ValueError: the number differs, or a calibration is for other classes, columns or scores.
    """
    if len(calibrations) != len(sites):
        raise UserError(
            f"This model has {len(sites)} box predictors (cascade stages), but "
            f"{len(calibrations)} calibrations were given. Give one per stage, in stage order."
        )
    for site, calibration in zip(sites, calibrations):
        calibration.check_columns(num_classes_of(site.classifier), site.background)
        calibration.check_activation(has_sigmoid_scores(site.classifier))


def _hooks(owner: nn.Module) -> list[CalibrationHook]:
    hooks = owner._forward_hooks.values()
    return [hook for hook in hooks if isinstance(hook, CalibrationHook)]


def _cover(site: Site, calibration: AffineCalibration, guard: WeightsGuard | None) -> None:
    owner = site.owner
    if isinstance(site.classifier, ClassLayers):
        CalibrationHook.attach(site.classifier, calibration, guard)
        return
    # The module moves in place; `attach` has made a copy.
    calibration.to(next(owner.parameters()).device)
    if isinstance(owner, CalibratedPredictor):
        owner.calibration, owner.weights_check = calibration, guard
        return
    covering = _CalibratedMethod(owner, site.method, guard)
    owner.add_module(CHILD, calibration)
    # Directly into __dict__, because nn.Module's setattr would register a module as a submodule.
    owner.__dict__[site.method] = covering
