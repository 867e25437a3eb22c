"""Statistics from a checkpoint that was trained with the released LogN code.

That code (https://github.com/MCG-NJU/LogN, on MMDetection 2) puts a ``BatchNorm1d(K + 1)`` behind
the classifier; its buffers are the statistics. In a checkpoint they are

    roi_head.bbox_head.bn.running_mean          and running_var, num_batches_tracked
    roi_head.bbox_head.{i}.bn.running_mean      of cascade stage i

beside the classifier's own ``fc_cls.weight`` and ``fc_cls.bias``. The background is the last
column.

Shapes: K foreground classes, C = K + 1 logit columns, S cascade stages.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingFileError
from .ema_moments import EmaLogitMoments
from .fingerprint import classifier_fingerprint
from .stage import StageStatistics, StatisticsError
from .statistics import LogitStatistics

# The normalisation is the box head's own child; those inside its convolutions lie deeper.
_BUFFER = re.compile(
    r"(?P<head>(?:.*\.)?bbox_head)(?:\.(?P<stage>\d+))?\.(?P<norm>\w+)\.running_mean"
)


def load_batch_norm(
    path: str | os.PathLike[str], class_names: Sequence[str] | None = None, **options: Any
) -> LogitStatistics:
    """`import_batch_norm` of a checkpoint file.

    Args:
        path (PathLike): the checkpoint; it is read without unpickling anything but tensors and
            plain containers.
        class_names (Sequence[str]): K names in the order of the logits; if not given, those that
            MMDetection wrote into the checkpoint (``meta["CLASSES"]``), or numbers.
        **options: of `import_batch_norm`.

    Raises:
        FileNotFoundError: there is no such file.
        StatisticsError: the file can't be read safely, or has no such statistics.

    Example:
        >>> load_batch_norm("epoch_1.pth").save("logn_stats.safetensors")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no checkpoint at '{path}'.")
    try:
        # MMDetection also writes its optimiser and its config; the safe loader refuses the
        # checkpoint if these hold objects.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise StatisticsError(
            f"'{path}' can't be read safely: it is damaged, or holds more than tensors and plain "
            "containers. If you trust it, write its tensors alone, where it was made: "
            "torch.save({'state_dict': torch.load(PATH)['state_dict']}, NEW)."
        ) from None
    if not isinstance(content, Mapping):
        raise StatisticsError(f"'{path}' holds a {type(content).__name__}, expected a checkpoint.")
    state = content.get("state_dict", content.get("model", content))
    meta = content.get("meta")
    if class_names is None and isinstance(meta, Mapping):
        class_names = meta.get("CLASSES")
    return import_batch_norm(state, class_names, **options)


def import_batch_norm(
    state_dict: Mapping[str, Tensor],
    class_names: Sequence[str] | None = None,
    *,
    momentum: float = 5e-5,
    debias: bool = False,
    images_per_batch: int = 1,
    rois_per_image: int = 512,
    datasets: Sequence[str] = (),
) -> LogitStatistics:
    """Moving averages from the buffers of a ``BatchNorm1d`` behind each classifier.

    Properties of these numbers:

    - After n batches a share (1 - momentum)^n of the start values, mean 0 and variance 1, remains.
      ``debias`` removes it, which is right only for buffers that started there and had one momentum
      all the time: a checkpoint of the released fine-tuning, from a training without the layer.
    - They cover one process's images and lack the variance between images.
    - *The background's mean is not to be trusted*: the released code sets it to zero in the buffer
      itself at each evaluation. An exact zero counts as unknown (count 0); a mean that has moved
      away from zero since can't be recognised. LogN does not use it.
    - The layer counts batches; images and RoIs follow from the settings of the training.

    Args:
        state_dict (Mapping): state dict of the MMDetection model.
        class_names (Sequence[str]): K names in the order of the logits; numbers if not given.
        momentum (float): momentum of the layer; 5e-5 in the released fine-tuning configs, 1e-4
            where a config has none.
        debias (bool): remove the share of the start values.
        images_per_batch (int): batch size of one process; 1 in the released fine-tuning configs.
        rois_per_image (int): sampled RoIs; 512 in the released configs.
        datasets (Sequence[str]): data sets of the pass, for the record.

    Returns:
        LogitStatistics: S stages, estimator "ema" or "ema_debiased", with fingerprints where the
        classifiers are there.

    Raises:
        StatisticsError: no such buffers, several heads, buffers that were never updated, or another
            number of classes.

    Example:
        >>> state = torch.nn.BatchNorm1d(3, momentum=5e-5, affine=False).state_dict()
        >>> state = {f"roi_head.bbox_head.bn.{name}": tensor for name, tensor in state.items()}
        >>> state["roi_head.bbox_head.bn.num_batches_tracked"] += 100
        >>> import_batch_norm(state, ["axolotl", "bee"]).stages[0].var.tolist()
        [1.0, 1.0, 1.0]
    """
    prefixes = _stage_prefixes(state_dict)
    columns = len(state_dict[f"{prefixes[0][1]}.running_mean"])
    names = tuple(class_names or map(str, range(columns - 1)))
    if len(names) != columns - 1:
        raise StatisticsError(
            f"The checkpoint's statistics are of {columns - 1} classes, but {len(names)} class "
            "names were given. Name the data set that it was trained on."
        )
    batches = [_number_of_batches(state_dict, norm) for _, norm in prefixes]
    rois_per_batch = images_per_batch * rois_per_image
    stages = tuple(
        _stage(state_dict, *prefix, momentum, debias, rois_per_batch) for prefix in prefixes
    )
    return LogitStatistics(
        stages=stages,
        class_names=names,
        datasets=tuple(datasets),
        population="sampled",
        estimator="ema_debiased" if debias else "ema",
        momentum=momentum,
        sampler="unknown",
        augmented=True,
        num_images=batches[0] * images_per_batch,
        num_rois=batches[0] * rois_per_batch,
        provenance={"imported from": [norm for _, norm in prefixes], "batches": batches},
    )


def _stage_prefixes(state_dict: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """For each stage, in order: the name of its box head, and of the layer behind its classifier.

    A layer behind the classifier has as many columns as the classifier.
    """
    found: dict[str, dict[int, tuple[str, str]]] = {}
    for name, tensor in state_dict.items():
        match = _BUFFER.fullmatch(name)
        if match is None or tensor.dim() != 1:
            continue
        norm = name.removesuffix(".running_mean")
        head = norm.rpartition(".")[0]
        # Without the classifier (a file of buffers alone) the name must do; with it, the width
        # tells this layer from normalisations of features.
        weight = state_dict.get(f"{head}.fc_cls.weight")
        if weight is None or len(weight) == len(tensor):
            found.setdefault(match["head"], {})[int(match["stage"] or 0)] = (head, norm)
    if not found:
        # Three names are enough to see which kind of model it is; a backbone has fifty.
        others = [name for name in state_dict if name.endswith("running_mean")][:3]
        raise StatisticsError(
            "The checkpoint has no statistics of logits: there is no buffer such as "
            "'roi_head.bbox_head.bn.running_mean' (it has "
            f"{', '.join(others) or 'no running_mean at all'}). Was it written by the fine-tuning "
            "of the released LogN code?"
        )
    if len(found) > 1:
        raise StatisticsError(
            f"The checkpoint has several box heads ({', '.join(found)}); give the state dict of "
            "one model."
        )
    (stages,) = found.values()
    if sorted(stages) != list(range(len(stages))):
        raise StatisticsError(f"The checkpoint has statistics of the stages {sorted(stages)} only.")
    return [stages[index] for index in range(len(stages))]


def _number_of_batches(state_dict: Mapping[str, Tensor], norm: str) -> int:
    batches = int(state_dict.get(f"{norm}.num_batches_tracked", 0))
    if batches < 1:
        raise StatisticsError(
            f"'{norm}' has seen no batch (num_batches_tracked): these are its start values. Use "
            "the checkpoint that the fine-tuning ended with."
        )
    return batches


def _stage(
    state_dict: Mapping[str, Tensor],
    head: str,
    norm: str,
    momentum: float,
    debias: bool,
    rois_per_batch: int,
) -> StageStatistics:
    steps = _number_of_batches(state_dict, norm)
    mean = state_dict[f"{norm}.running_mean"].double()
    # The layer counts batches only. The number matters for `usable` alone, which asks for two
    # logits.
    count = torch.full_like(mean, steps * rois_per_batch, dtype=torch.int64)
    # The released code zeroes the background's mean in evaluation: count 0 marks it as unknown, so
    # that beta=background refuses it.
    count[-1] *= int(mean[-1] != 0)
    state = {"mean": mean, "var": state_dict[f"{norm}.running_var"].double(), "count": count}
    averages = EmaLogitMoments.from_state_dict({**state, "steps": torch.tensor(steps)}, momentum)
    # The same formula as for averages of our own, so that both give the same numbers.
    moments = averages.debiased() if debias else (averages.mean, averages.var)
    weight = state_dict.get(f"{head}.fc_cls.weight")
    if weight is not None:
        weight = classifier_fingerprint(weight, state_dict.get(f"{head}.fc_cls.bias"))
    return StageStatistics(*moments, count, fingerprint=weight)
