"""Registry keeps names apart and lists them on a miss."""

import pytest

from logn_d2.core import Registry


def make_registry():
    registry = Registry("greeting")
    registry.register("polite")(lambda: "Good morning.")
    registry.register("brief")(lambda: "Hi.")
    return registry


def test_entries_are_found_by_name():
    registry = make_registry()
    assert registry.get("brief")() == "Hi."
    assert "brief" in registry and "long" not in registry
    assert list(registry) == ["polite", "brief"]


def test_a_miss_lists_the_known_names():
    with pytest.raises(KeyError, match="Unknown greeting 'long'. Known: brief, polite."):
        make_registry().get("long")


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="greeting 'brief' is registered already"):
        make_registry().register("brief")(lambda: "Hello.")


def test_the_decorator_returns_the_registered_function():
    def hello():
        pass

    assert make_registry().register("hello")(hello) is hello
