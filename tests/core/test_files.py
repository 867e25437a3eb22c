"""Files of atomic_write are complete or do not exist."""

import os
import stat

import pytest

from logn_d2.files import atomic_write


def test_the_file_appears_only_at_the_end(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_old_file_is_intact(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_after_an_error_no_new_file_is_there(tmp_path):
    with pytest.raises(ValueError), atomic_write(tmp_path / "file.txt"):
        raise ValueError
    assert os.listdir(tmp_path) == []


def test_a_path_that_is_a_folder_is_an_error(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), atomic_write(tmp_path / "folder") as temporary:
        temporary.write_text("new")
    assert os.listdir(tmp_path) == ["folder"]


def test_the_file_gets_the_users_usual_permissions(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file.txt") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640


def test_two_writers_do_not_meet(tmp_path):
    with atomic_write(tmp_path / "file") as one, atomic_write(tmp_path / "file") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "file").read_text() == "one"  # the outer one ends last
