"""Fractal dimensions of the positions of each class's objects, by box counting as in FRACAL.

Shapes: M objects of all classes, K foreground classes. Positions are shares of the image, in
[0, 1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# Cells along each side of the finest grid over the images.
MAX_GRID = 64


def fractal_dimensions_of(
    classes: ArrayLike, x: ArrayLike, y: ArrayLike, num_classes: int
) -> np.ndarray:
    """Compute the dimension of each class's positions: 1 for a line, 2 for the whole image plane.

    Of a G x G grid let nu(G) be the cells that hold an object of the class. The dimension is the
    slope of log nu on log G (least squares), over all G up to `MAX_GRID` for which the class has as
    many objects as there are cells, and at least 1. It is 1 for classes of fewer than 4 objects.

    Alexandridis, Deng, Nguyen and Luo, "Fractal Calibration for long-tailed object detection",
    CVPR 2025.

    Args:
        classes (ArrayLike): (M,) in [0, K).
        x, y (ArrayLike): (M,) centres of the objects' boxes. A centre outside the image is in no
            cell but counts as an object.
        num_classes (int): K.

    Returns:
        ndarray: (K,) float64, at least 1.

    Example:
        >>> corners = [0.1, 0.1, 0.9, 0.9], [0.1, 0.9, 0.1, 0.9]
        >>> fractal_dimensions_of([0, 0, 0, 0], *corners, num_classes=2).tolist()
        [2.0, 1.0]
    """
    classes, x, y = np.asarray(classes, dtype=np.int64), np.asarray(x), np.asarray(y)
    objects = np.bincount(classes, minlength=num_classes)
    grids = np.arange(1, MAX_GRID + 1)
    log_cells = np.zeros((MAX_GRID, num_classes))
    # A class with fewer objects than cells can't fill them: the number of occupied cells stops
    # growing, and finer grids would lower the slope.
    used = grids[:, None] ** 2 <= objects
    for grid in grids[used.any(axis=1)]:
        # floor and not a cast: truncation would put a centre just outside, at -0.1, into cell 0.
        column, row = np.floor(x * grid), np.floor(y * grid)
        counts = used[grid - 1, classes] & (np.minimum(column, row) >= 0)
        counts &= np.maximum(column, row) < grid
        # Class and cell in one number, so that one `unique` finds the occupied cells of all
        # classes.
        cell = classes * grid**2 + row.astype(np.int64) * grid + column.astype(np.int64)
        occupied = np.bincount(np.unique(cell[counts]) // grid**2, minlength=num_classes)
        # All objects of a class may lie outside of the image; log 1 keeps the slope finite.
        log_cells[grid - 1] = np.log(np.maximum(occupied, 1))
    return np.maximum(_slopes(np.log(grids)[:, None], log_cells, used), 1.0)


def _slopes(x: np.ndarray, y: np.ndarray, used: np.ndarray) -> np.ndarray:
    """(K,) least-squares slope of each column of y on x, over the used rows; 0 below two."""
    number = np.maximum(used.sum(axis=0), 1)
    # Each class has rows of its own, so the fit is written out: np.polyfit would need a loop over K
    # classes. Centring x alone suffices for the slope.
    deviation = np.where(used, x - np.where(used, x, 0).sum(axis=0) / number, 0)
    square = (deviation**2).sum(axis=0)
    return (deviation * y).sum(axis=0) / np.where(square > 0, square, 1)
