"""Parts of every pass over a data set: its digest, a loader that resumes, and shards on disk."""

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
