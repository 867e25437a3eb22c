"""Settings of these tests."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread(one_thread: None) -> None:
    """All of these models are small."""
