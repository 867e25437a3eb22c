"""The common form of all post-hoc calibrations: a per-class affine map of the logits.

Shapes: R RoIs, K foreground classes. Detector logits are (R, K + 1) with the background column last
(Detectron2, MMDetection) or first (torchvision); a classifier without background has (R, K).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from .. import UNCALIBRATED
from ..errors import MissingFileError, UserError, check_choice
from .tensor_file import FileKind

Background = Literal["last", "first", "none"]

FILE = FileKind(
    "logn_d2 calibration",
    "calibration file",
    version=1,
    advice="Give a file that AffineCalibration.save has written; statistics are read by "
    "LogitStatistics.load.",
)

_FOREGROUND = {"last": slice(0, -1), "first": slice(1, None), "none": slice(None)}


def foreground_columns(background: Background) -> slice:
    """The slice of the foreground columns.

    Args:
        background (str): position of the background column: "last", "first" or "none".

    Raises:
        ValueError: another value of `background`.

    Example:
        >>> torch.tensor([1, 2, 3])[foreground_columns("last")].tolist()
        [1, 2]
    """
    check_choice("background", background, _FOREGROUND)
    return _FOREGROUND[background]


class AffineCalibration(nn.Module):
    """``z'_c = scale_c * z_c + shift_c`` for foreground classes; background is unchanged.

    It is a module, so that it follows its predictor through ``.to()`` and ``deepcopy``. Its buffers
    are not in the state dict unless ``persistent`` is set: a model with an attached calibration has
    the same checkpoint as the model alone. A head of your own that should find its calibration in
    its checkpoint needs ``persistent=True``; `save` and `load` write only the calibration.

    Args:
        scale (Tensor): (K,), positive and finite.
        shift (Tensor): (K,), finite, in nats.
        background (str): position of the background column: "last", "first" or "none".
        name (str): name for tables and files, for example "logn"; not part of a state dict.
        persistent (bool): whether state dicts contain the buffers.
        softmax_only (bool): whether the method has another form for heads with sigmoid scores.

    Raises:
        ValueError: the vectors have a wrong shape, or values that would invalidate every score.

    Example:
        >>> calibration = AffineCalibration(torch.tensor([2.0]), torch.tensor([1.0]))
        >>> calibration(torch.tensor([[3.0, 5.0]])).tolist()
        [[7.0, 5.0]]
    """

    column_scale: Tensor
    column_shift: Tensor

    def __init__(
        self,
        scale: Tensor,
        shift: Tensor,
        *,
        background: Background = "last",
        name: str = "affine",
        persistent: bool = False,
        softmax_only: bool = False,
    ) -> None:
        super().__init__()
        # Called only for its check of the name.
        foreground_columns(background)
        # Checked after rounding to float32, in which a float64 value may become 0 or infinite.
        # float32 is the precision of the logits; formulas in float64 are rounded here, once.
        scale, shift = scale.detach().float(), shift.detach().float()
        _check_vectors(scale, shift)
        self.background = background
        self.name = name
        self.softmax_only = softmax_only
        # One multiply-add over all columns is faster than slicing off the background, and exact for
        # it, since z * 1 + 0 == z.
        columns = {
            "column_scale": self._with_background(scale, 1.0),
            "column_shift": self._with_background(shift, 0.0),
        }
        for buffer, column in columns.items():
            self.register_buffer(buffer, column, persistent=persistent)

    @classmethod
    def identity(
        cls, num_classes: int, background: Background = "last", *, persistent: bool = False
    ) -> AffineCalibration:
        """The calibration that changes nothing.

        Args:
            num_classes (int): K.
            background (str): "last", "first" or "none".
            persistent (bool): True for a placeholder that a checkpoint fills.
        """
        ones = torch.ones(num_classes)
        return cls(
            ones,
            torch.zeros_like(ones),
            background=background,
            name=UNCALIBRATED,
            persistent=persistent,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: ``scale`` and ``shift``, float32 (K,), and JSON metadata.

        Raises:
            OSError: the folder can't be written or the disk is full.

        Example:
            >>> import tempfile
            >>> calibration = AffineCalibration.identity(3)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     calibration.save(Path(folder, "c.safetensors"))
            ...     AffineCalibration.load(Path(folder, "c.safetensors"))
            AffineCalibration(name='uncalibrated', num_classes=3, background='last')
        """
        tensors = {name: getattr(self, name).float().cpu().clone() for name in ("scale", "shift")}
        names = ("background", "name", "softmax_only")
        FILE.write(path, tensors, {name: getattr(self, name) for name in names})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, persistent: bool = False) -> AffineCalibration:
        """Read a file written by `save`.

        Args:
            path (PathLike): the file.
            persistent (bool): whether state dicts contain the buffers.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, has another format, or is from a newer version.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(f"The calibration file '{path}' does not exist.")
        tensors, fields = FILE.read(path)
        try:
            return cls(
                tensors["scale"],
                tensors["shift"],
                background=fields["background"],
                name=str(fields["name"]),
                persistent=persistent,
                # Files written before the field existed lack it.
                softmax_only=bool(fields.get("softmax_only", False)),
            )
        except KeyError as error:
            raise UserError(f"'{path}' lacks {error}. Save the calibration again.") from None
        except ValueError as error:
            raise UserError(f"'{path}' can't be used. {error}") from error

    def check_activation(self, sigmoid: bool) -> None:
        """Check that the calibration is defined for this kind of scores.

        Args:
            sigmoid (bool): whether scores are sigmoids of the logits instead of their softmax.

        Raises:
            ValueError: the calibration is not defined for them.
        """
        if sigmoid and self.softmax_only:
            raise UserError(
                f"The calibration '{self.name}' is an affine map of the logits only for softmax "
                "scores, but this head has sigmoid scores, for which the method multiplies two "
                "sigmoids. "
                "Choose norcal, p2p or logn."
            )

    def check_columns(self, num_classes: int, background: Background) -> None:
        """Check that the calibration is for logits of this form.

        Raises:
            ValueError: the calibration is for other logits.
        """
        if (self.num_classes, self.background) != (num_classes, background):
            raise UserError(
                f"The calibration '{self.name}' is for {self.num_classes} classes with the "
                f"background column {self.background}; this model has {num_classes} classes and "
                f"the background column {background}. Make it from this model's statistics or "
                "counts."
            )

    def digest(self) -> str:
        """A hash of all values that determine the calibrated logits: 16 hexadecimal digits."""
        # The name is left out: two names of the same numbers give the same detections.
        digest = hashlib.sha256(f"{self.background} {len(self.column_scale)}".encode())
        for column in (self.column_scale, self.column_shift):
            digest.update(column.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def scale(self) -> Tensor:
        """(K,) foreground scale."""
        return self.column_scale[foreground_columns(self.background)]

    @property
    def shift(self) -> Tensor:
        """(K,) foreground shift, in nats."""
        return self.column_shift[foreground_columns(self.background)]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.scale)

    def forward(self, logits: Tensor) -> Tensor:
        """Calibrate logits.

        Args:
            logits (Tensor): (R, K + 1), or (R, K) without background; any floating type.

        Returns:
            Tensor: the same shape, at least float32 (half precision only after ``.half()``).

        Raises:
            ValueError: another number of columns.
        """
        # A traced graph can't raise errors, and tracing warns of such comparisons.
        if not torch.jit.is_tracing() and logits.shape[-1] != len(self.column_scale):
            raise UserError(
                f"The calibration '{self.name}' has {len(self.column_scale)} columns (background: "
                f"{self.background}), but these logits have {logits.shape[-1]}. Use statistics of "
                "this head, or build the calibration with the right background=."
            )
        # The buffers are float32, so that half-precision logits are promoted: their 10 bits could
        # not resolve the shifts.
        return torch.addcmul(self.column_shift, logits, self.column_scale)

    def extra_repr(self) -> str:
        return f"name={self.name!r}, num_classes={self.num_classes}, background={self.background!r}"

    def _with_background(self, vector: Tensor, value: float) -> Tensor:
        column = vector.new_full((1,), value)
        if self.background == "none":
            return vector.clone()
        return torch.cat([vector, column] if self.background == "last" else [column, vector])


def _check_vectors(scale: Tensor, shift: Tensor) -> None:
    if scale.dim() != 1 or scale.shape != shift.shape:
        raise UserError(
            f"Expected scale and shift of one shape (K,), found {tuple(scale.shape)} and "
            f"{tuple(shift.shape)}."
        )
    bad = ~(scale.isfinite() & (scale > 0) & shift.isfinite())
    if bad.any():
        # A negative scale would reverse the ranking of a class, and 0 would give all its RoIs one
        # score.
        index = int(bad.nonzero()[0])
        raise UserError(
            f"{int(bad.sum())} of {len(scale)} classes have a scale that is not positive, or a "
            f"value that is not finite in float32; the first is class {index} with scale "
            f"{float(scale[index])} and shift {float(shift[index])}. Check the statistics, counts "
            "or options that it was made from."
        )
