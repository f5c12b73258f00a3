# SPDX-License-Identifier: Apache-2.0
"""Files that are written: where they lie, on each kind of storage, and what is left if something fails."""

from __future__ import annotations

import errno
import itertools

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_voicegenie.files import (
    FileNotWrittenError,
    FileUnreadableError,
    partial_paths,
    read_rows,
    remove,
    replacing,
    storage_path,
)

try:
    from airflow.sdk.io import attach
except ImportError:
    from airflow.io.store import attach

#: Names with characters that some functions of fsspec take for a pattern, or for a part of an address.
ODD_NAMES = [
    "a?.csv",
    "calls*.csv",
    "**.csv",
    "x[EU].csv",
    "x[!a].csv",
    "what?day=1.csv",
    "a#b.csv",
    "a%2Fb c&d.csv",
    "ü{1}.csv",
]

_numbers = itertools.count()


class Renaming(MemoryFileSystem):
    """A storage that moves files by renaming them, as SFTP and HDFS do."""

    def mv(self, path1, path2):
        self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))


class WithoutDeleting(MemoryFileSystem):
    """A storage on which the task may write, but not delete."""

    def rm_file(self, path):
        raise PermissionError("Access Denied")

    rm = _rm = rm_file


class OnlyAdding(WithoutDeleting):
    """One on which it may not replace either."""

    def pipe_file(self, path, value, **options):
        raise PermissionError("Access Denied")


class Elsewhere(MemoryFileSystem):
    """A storage that puts some copies under another name."""

    def cp_file(self, path1, path2, **options):
        super().cp_file(path1, f"{path2}-1", **options)


class Asynchronous(Renaming):
    """A storage such as S3, whose own `mv` expands patterns, and does not come from fsspec's base class."""

    async_impl = True

    def mv(self, path1, path2):
        raise AssertionError("it would take the name for a pattern")


@pytest.fixture
def folder():
    """Return what returns a folder on a storage of some class."""

    def make(kind=MemoryFileSystem):
        number = next(_numbers)
        storage = kind(number=number)
        storage.store, storage.pseudo_dirs = {}, [""]
        attach("memory", f"storage-{number}", fs=storage)
        return ObjectStoragePath(f"memory://storage-{number}@bucket/{number}")

    return make


def write(path, data):
    with replacing(path, {}) as file:
        file.write(data)
    return file


def everything_on(path):
    storage = path.fs
    return {name.rpartition("/")[2]: storage.cat_file(name) for name in storage.find("/")}


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("kind", [MemoryFileSystem, Renaming, Asynchronous])
def test_a_name_is_no_pattern(folder, kind, name):
    path = folder(kind) / name
    others = {"ab.csv": b"1", "calls1.csv": b"2", "xE.csv": b"3", ".ab.csv.partial": b"4", ".xE.csv.partial": b"5"}
    path.fs.pipe({path.with_name(other).path: data for other, data in others.items()})
    write(path, b"yesterday's")
    assert write(path, b"today's").size == 7
    assert everything_on(path) == {**others, name: b"today's"}
    assert path.read_bytes() == b"today's"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_no_pattern_on_this_machine(tmp_path, name):
    path = ObjectStoragePath(f"file://{tmp_path}/new/{name}")
    (tmp_path / "xE.csv").write_text("another")
    write(path, b"yesterday's")
    write(path, b"today's")
    assert [(each.name, each.read_bytes()) for each in (tmp_path / "new").iterdir()] == [(name, b"today's")]


def test_what_is_removed_is_no_pattern_either(folder):
    path = folder() / "calls*.csv"
    path.fs.pipe({path.with_name(name).path: b"1" for name in ("calls1.csv", "calls2.csv")})
    remove(path)
    assert sorted(everything_on(path)) == ["calls1.csv", "calls2.csv"]


def test_without_the_right_to_delete(folder, said):
    path = folder(WithoutDeleting) / "calls.csv"
    write(path, b"today's")
    assert everything_on(path) == {"calls.csv": b"today's", (partial := partial_paths(path, {})[-1].name): b""}
    assert f"{partial} could not be removed (PermissionError). It is empty now. Remove it, or" in said()[-1]
    # What is not there is not made.
    remove(path.with_name("earlier.partial"))
    assert sorted(everything_on(path)) == [partial, "calls.csv"]
    assert not said()


def test_without_the_right_to_replace(folder, said):
    path = folder(OnlyAdding) / "calls.csv"
    write(path, b"today's")
    assert everything_on(path)["calls.csv"] == b"today's"
    assert "could not be removed (PermissionError). It may hold names and numbers. Remove it, or" in said()[-1]


def test_what_lies_elsewhere_is_not_reported(folder):
    path = folder(Elsewhere) / "calls.csv"
    with pytest.raises(
        FileNotWrittenError, match=r"calls\.csv' was written, but .*something else \(0 bytes instead of 7"
    ):
        write(path, b"today's")
    path.fs.pipe({path.path: b"earlier"})
    with pytest.raises(FileNotWrittenError, match=r"something else \(7 bytes instead of 7"):
        write(path, b"today's")
    assert not [name for name in everything_on(path) if name.endswith(".partial")]


def test_a_full_disk_says_of_which_file(folder, tmp_path):
    path = ObjectStoragePath(f"file://{tmp_path}/calls.csv")
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/calls\.csv'"),
        replacing(path, {}),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [str, ObjectStoragePath])
@pytest.mark.parametrize("prefix", ["~", "file://~"])
def test_the_home_folder(tmp_path, monkeypatch, make, prefix):
    monkeypatch.setenv("HOME", str(tmp_path))
    if make is ObjectStoragePath and prefix == "~" and not make("~/calls.csv").path.startswith("~"):
        pytest.skip("this Airflow takes it for a folder below the root")
    path = storage_path(make(f"{prefix}/calls/x.csv"))
    write(path, b"today's")
    assert str(path).removeprefix("file://") == f"{tmp_path}/calls/x.csv"
    assert [each.name for each in (tmp_path / "calls").iterdir()] == ["x.csv"]


@pytest.mark.parametrize("path", ["/a/~/x.csv", "s3://bucket/~/x.csv", "file:///a/~x.csv"])
def test_other_paths_stay_as_they_are(path):
    assert str(storage_path(path)) == path


def test_a_folder_of_parts_is_no_file(folder, tmp_path):
    (tmp_path / "calls.parquet").mkdir()
    elsewhere = folder() / "calls.parquet"
    elsewhere.fs.pipe({f"{elsewhere.path}/part-0.parquet": b"1"})
    for path in (ObjectStoragePath(f"file://{tmp_path}/calls.parquet"), elsewhere):
        with pytest.raises(FileUnreadableError, match=r"calls\.parquet' is a folder, not a file.*over its files"):
            list(read_rows(path))
        with pytest.raises(IsADirectoryError, match=r"calls\.parquet' is a folder\. Remove it"):
            write(path, b"today's")
    assert list(everything_on(elsewhere)) == ["part-0.parquet"]


def test_what_is_not_there_is_no_folder(folder, tmp_path):
    for path in (ObjectStoragePath(f"file://{tmp_path}/x.parquet"), folder() / "x.parquet"):
        with pytest.raises(FileNotFoundError):
            list(read_rows(path))


def test_the_home_folder_of_nobody():
    with pytest.raises(FileUnreadableError, match="there is no user 'nobodyx' on the machine of this task"):
        storage_path("~nobodyx/calls.csv")
