"""LT-Glyphs: a long-tail detection benchmark that is drawn on the spot, in LVIS's form."""

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
