"""LT-Glyphs: a long-tail detection benchmark in LVIS format that is drawn locally."""

from .dataset import draw_glyphs, glyphs_folder, verify_glyphs
from .registration import register_glyphs
from .sizes import SIZES, GlyphSize, get_size

__all__ = [
    "SIZES",
    "GlyphSize",
    "draw_glyphs",
    "get_size",
    "glyphs_folder",
    "register_glyphs",
    "verify_glyphs",
]
