"""Registration of LT-Glyphs in Detectron2's catalogs."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..data.registration import register_lvis_form
from .dataset import glyphs_folder
from .plan import SPLITS
from .sizes import SIZES, GlyphSize
from .store import annotation_file


def register_glyphs(
    root: str | os.PathLike[str] | None = None, sizes: Iterable[GlyphSize] | None = None
) -> list[str]:
    """Register ``lt_glyphs_{size}_train`` and ``lt_glyphs_{size}_val`` for every size.

    Like Detectron2's own data sets they are registered even if they do not exist yet, and read when
    used. Another call with a different root moves the names there.

    Args:
        root (path or None): datasets root; None takes $DETECTRON2_DATASETS, else ``datasets``.
        sizes (Iterable[GlyphSize] or None): sizes of your own; None takes the named ones.

    Returns:
        list[str]: the names.

    Example:
        >>> register_glyphs("datasets")[:2]
        ['lt_glyphs_tiny_train', 'lt_glyphs_tiny_val']
    """
    if root is None:
        root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    names = []
    for size in SIZES.values() if sizes is None else sizes:
        folder = glyphs_folder(root, size.name)
        for split in SPLITS:
            names.append(f"lt_glyphs_{size.name}_{split}")
            register_lvis_form(
                names[-1],
                annotation_file(folder, size.name, split),
                # Detectron2's own LVIS loader joins root and folder without a separator.
                os.path.join(folder, ""),
                {"frequency_limits": (size.rare_max, size.common_max)},
                replace=True,
                hint=f"Draw the set: logn data draw --size {size.name} --root {root}",
            )
    return names
