"""Training, the statistics pass and evaluation, in one process or many."""

from .launch import launch
from .trainer import Trainer

__all__ = ["Trainer", "launch"]
