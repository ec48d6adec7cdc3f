import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from common.errors import UserError
from common.files import ArrayWriter, atomic_file, atomic_folder, make_folder, refuse_no_folder, write_json


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_json_has_null_for_what_is_no_finite_number_however_deep(tmp_path):
    content = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1.5, 2), "e": "é", "f": None, "g": True}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    expected = {"a": None, "b": [None, {"c": None}], "d": [1.5, 2], "e": "é", "f": None, "g": True}
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == expected
    assert "é" in text and text.endswith("}\n")


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert entries(tmp_path) == ["a.txt"]


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["a.txt"]


def test_an_error_of_writing_is_a_users_mistake_that_names_the_output(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(UserError, match=r"a\.txt: cannot be written \(No space left on device\)"), atomic_file(path):
        raise OSError(28, "No space left on device")
    with pytest.raises(UserError, match=r"a\.txt: cannot be written"), atomic_file(path) as temporary:
        raise OSError(28, "No space left on device", str(temporary))


def test_a_disk_that_fills_up_under_safetensors_is_a_users_mistake_too(tmp_path):
    with (
        pytest.raises(UserError, match=r"model: cannot be written \(no space left\)"),
        atomic_folder(tmp_path / "model"),
    ):
        raise SafetensorError("no space left")
    assert not list((tmp_path / "model").iterdir())


@pytest.mark.parametrize("name", ["file.txt", "file.txt/below/it"])
def test_where_no_folder_can_be_made_is_said_before_any_is(name, tmp_path):
    (tmp_path / "file.txt").touch()
    refuse_no_folder(tmp_path / "new" / "folder")
    with pytest.raises(UserError, match=r"cannot be made a folder \(.*file.txt is a file\)"):
        refuse_no_folder(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_an_error_about_somebody_elses_file_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "out.csv"):
        (tmp_path / "input.csv").open()
    assert caught.value.filename == str(tmp_path / "input.csv")
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "model"):
        (tmp_path / "input.csv").open()


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_a_file_whose_name_begins_like_the_outputs_is_somebody_elses_too(atomic, tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        (tmp_path / "a.csv").open()


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(UserError, match="is a folder; give the name of a file to write"), atomic_file(tmp_path):
        pass


@pytest.fixture
def calls(monkeypatch):
    """What happens to files, in order: ("fsync", content) and ("replace", name)."""
    made, fsync, replace = [], os.fsync, Path.replace

    def synced(number):
        made.append(("fsync", os.pread(number, 100, 0)))
        fsync(number)

    def replaced(path, target):
        made.append(("replace", Path(target).name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    return made


def test_a_file_is_on_the_disk_before_it_has_its_name(calls, tmp_path):
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("content")
    assert calls == [("fsync", b"content"), ("replace", "a.txt")]


def test_each_file_of_a_folder_is_on_the_disk_before_it_has_its_name(calls, tmp_path):
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "a.txt").write_text("1")
        (temporary / "b.txt").write_text("2")
    assert calls == [("fsync", b"1"), ("replace", "a.txt"), ("fsync", b"2"), ("replace", "b.txt")]


def test_a_folders_files_replace_those_of_their_names_alone(tmp_path):
    (tmp_path / "model" / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", "kept.txt"):
        (tmp_path / "model" / name).write_text("old")
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "sub").mkdir()
        for name in ("a.txt", "sub/b.txt", "new.txt"):
            (temporary / name).write_text("new")
    found = {path.name: path.read_text() for path in (tmp_path / "model").rglob("*.txt")}
    assert found == {"a.txt": "new", "b.txt": "new", "new.txt": "new", "kept.txt": "old"}
    assert entries(tmp_path / "model") == ["a.txt", "kept.txt", "new.txt", "sub"]


def test_a_folder_half_written_changes_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path) as temporary:
        (temporary / "a.txt").write_text("new")
        raise ZeroDivisionError
    assert entries(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_written_files_may_be_read_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "a.txt").touch(mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model" / "a.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_array_written_block_by_block_is_numpys(dtype, tmp_path):
    blocks = [np.random.default_rng(n).normal(size=(n, 5)) for n in (3, 0, 1000, 1)]
    writer = ArrayWriter(tmp_path / "a.npy", 5, dtype)
    for block in blocks:
        writer.write(block)
    writer.close()
    read = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, np.concatenate(blocks).astype(dtype))


def test_an_array_of_no_rows_has_its_width(tmp_path):
    ArrayWriter(tmp_path / "a.npy", 7, "float32").close()
    assert np.load(tmp_path / "a.npy").shape == (0, 7)


def test_folders_are_made_as_deep_as_they_are_asked_for(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="a: cannot be made a folder"):
        make_folder(tmp_path / "a")
    with pytest.raises(UserError, match="b: cannot be made a folder"):
        make_folder(tmp_path / "a" / "b")
