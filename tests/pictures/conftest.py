"""Small detectors for all tests here."""

from ..detector_fixtures import data_set, image_folder, model, models

__all__ = ["data_set", "image_folder", "model", "models"]
