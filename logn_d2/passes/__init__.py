"""Common to every pass over a data set: its digest, and a loader that resumes."""

from .resume import (
    BatchLoader,
    LoaderFactory,
    deciding_settings,
    loader_from,
    pass_digest,
    weights_digest,
)

__all__ = [
    "BatchLoader",
    "LoaderFactory",
    "deciding_settings",
    "loader_from",
    "pass_digest",
    "weights_digest",
]
