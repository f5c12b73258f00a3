# SPDX-License-Identifier: Apache-2.0
"""
Rows in files: CSV, JSON lines and Parquet, on any storage that Airflow's ``ObjectStoragePath`` reaches.

Rows are read and written as a stream: a file of any length takes the memory of a few thousand rows. No error shows what
is in a file.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow_provider_voicegenie.api.errors import unchained
from airflow_provider_voicegenie.rules.file_formats import FileFormat, file_format

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

#: Rows that Parquet files are read and written by.
_ROWS_AT_A_TIME = 5_000
_BUFFER_BYTES = 256 * 1024

#: Bytes of the file's name that a partial file's name begins with.
_PARTIAL_NAME_BYTES = 200

_BREAKS_THE_RULES = "it breaks the rules of its format there (a quotation mark that is not closed, or no JSON)"
_TOO_LONG_A_FIELD = (
    f"the next field is longer than {csv.field_size_limit():,} characters; perhaps a quotation mark is not closed"
)

_INSTALL_PYARROW = "Parquet files need pyarrow: pip install 'airflow-provider-voicegenie[parquet]'."


class FileUnreadableError(ValueError):
    """A file is not of the format that its name says."""


class FileNotWrittenError(OSError):
    """What lies at a path is not what was written there."""


def storage_path(path: str | ObjectStoragePath) -> ObjectStoragePath:
    """
    Return the path of a file, with the user's home folder in place of a ``~`` at its beginning.

    :raises FileUnreadableError: It begins with ``~`` and the name of a user who is not there.
    """
    # From here, as it loads fsspec.
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    if isinstance(path, ObjectStoragePath):
        if not (_is_local(path) and path.path.startswith("~")):
            return path
        path = path.path
    # Only some of the functions for files do that by themselves.
    expanded = os.path.expanduser(path)  # noqa: PTH111
    if expanded.startswith("~"):
        raise FileUnreadableError(f"there is no user {path.partition('/')[0][1:]!r:.80} on the machine of this task")
    return ObjectStoragePath(expanded)


def given_path(name: str, path: str | ObjectStoragePath) -> ObjectStoragePath:
    """
    Return a path, as a template gave it.

    :param name: The parameter's name, for the message.
    :raises ValueError: It ends in no known format, is on no storage that Airflow knows, or begins with the ``~`` of a
        user who is not there.
    """
    try:
        file_format(str(path))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    try:
        return storage_path(path)
    except FileUnreadableError as error:
        raise ValueError(f"{name}: {error}.") from None
    except ValueError:
        raise ValueError(f"{name}: Airflow cannot open {str(path)!r:.300}. {_not_installed(path)}") from None


def target_path(name: str, path: str | ObjectStoragePath) -> ObjectStoragePath:
    """
    Return the path of a file to write, as a template gave it.

    :param name: The parameter's name, for the message.
    :raises ValueError: It is none, or what writes to its storage, or in its format, is not installed.
    """
    target = given_path(name, path)
    try:
        if file_format(str(path))[0] is FileFormat.PARQUET:
            _pyarrow()
        # Opens no file, but needs what opens one.
        target.fs  # noqa: B018
    except FileUnreadableError as error:
        raise ValueError(f"{name}: {error}") from None
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"{name}: {str(path)!r:.200} cannot be opened ({type(error).__name__}). {_not_installed(target)}"
        ) from None
    return target


#: Which of Airflow's providers opens a storage.
_STORAGE_PROVIDERS = {
    **dict.fromkeys(("s3", "s3a"), "apache-airflow-providers-amazon[s3fs]"),
    **dict.fromkeys(("gs", "gcs"), "apache-airflow-providers-google"),
    **dict.fromkeys(("abfs", "abfss", "adl"), "apache-airflow-providers-microsoft-azure"),
    "hdfs": "apache-airflow-providers-apache-hdfs",
    "sftp": "apache-airflow-providers-sftp",
}


def _not_installed(path: str | ObjectStoragePath) -> str:
    storage = str(path).partition("://")[0] if "://" in str(path) else "file"
    package = _STORAGE_PROVIDERS.get(storage)
    remedy = f": pip install '{package}'" if package else ""
    return (
        f"Perhaps Airflow's provider of its storage ({storage}) is missing on the machine that runs this task{remedy}."
    )


def read_rows(path: ObjectStoragePath, column: str | None = None) -> Iterator[Mapping[Any, Any]]:
    """
    Yield the rows of a file.

    :param path: The file.
    :param column: A column that a CSV or Parquet file must have, also if it has no rows.

    Those of a CSV file, whose first line names the columns, are texts. A row of a CSV file that has more fields than
    the first line has them under the key ``None``.

    :raises FileUnreadableError: The file is not of the format that its name says.
    :raises OSError: The file cannot be opened or read.
    """
    found, is_compressed = file_format(str(path))
    readers = {FileFormat.CSV: _read_csv, FileFormat.JSON_LINES: _read_json_lines, FileFormat.PARQUET: _read_parquet}
    number = 0

    def unreadable(problem: str) -> FileUnreadableError:
        where = f"beyond row {number}" if number else "from its beginning"
        return FileUnreadableError(f"{str(path)!r:.200} cannot be read {where}: {problem}.")

    with unchained(), ExitStack() as stack:
        file: Any = stack.enter_context(_open_to_read(path))
        if is_compressed:
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        try:
            for number, row in enumerate(readers[found](file, column), start=1):  # noqa: B007  it is in the message
                yield row
        except FileUnreadableError as error:
            raise unreadable(str(error)) from None
        except UnicodeDecodeError:
            raise unreadable("it is not UTF-8; save it as UTF-8") from None
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise unreadable("it is not whole, or not compressed with gzip") from None
        except csv.Error as error:
            raise unreadable(_TOO_LONG_A_FIELD if "field limit" in str(error) else _BREAKS_THE_RULES) from None
        except (json.JSONDecodeError, RecursionError):
            raise unreadable(_BREAKS_THE_RULES) from None
        except (ValueError, TypeError, ArithmeticError) as error:
            # A number with thousands of digits, or a time that Python cannot hold.
            raise unreadable(f"there is a value that Python cannot hold ({type(error).__name__})") from None


def _open(path: ObjectStoragePath, mode: str) -> Any:
    return path.open(mode)  # type: ignore[no-untyped-call]


@unchained()
def _open_to_read(path: ObjectStoragePath) -> Any:
    try:
        return _open(path, "rb")
    except OSError:
        if not _is_folder(path):
            raise
        raise FileUnreadableError(
            f"{str(path)!r:.200} is a folder, not a file. Give the path of a file; to read a folder of Parquet parts, "
            "map the task over its files."
        ) from None
    except (ValueError, ImportError) as error:
        raise FileUnreadableError(
            f"{str(path)!r:.200} cannot be opened ({type(error).__name__}). {_not_installed(path)}"
        ) from None


def _read_csv(file: Any, column: str | None) -> Iterator[Mapping[Any, Any]]:
    lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    # As spreadsheets write empty rows, and empty columns on the right.
    rows = (line for line in lines if any(map(str.strip, line)))
    names = next(rows, [])
    _check_names([name for name in names if name.strip()], column)
    unnamed = [place for place, name in enumerate(names) if not name.strip()]
    for values in rows:
        if len(unnamed) > 1 and any(values[place].strip() for place in unnamed if place < len(values)):
            raise FileUnreadableError("the next row has a value in one of several columns without a name; name them")
        row: dict[Any, Any] = {**dict.fromkeys(names), **dict(zip(names, values, strict=False))}
        if len(values) > len(names):
            row[None] = values[len(names) :]
        yield row


def _check_names(names: Collection[str], column: str | None) -> None:
    for character, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and character in next(iter(names)) and column not in names:
            raise FileUnreadableError(f"its first line has {word}; between columns, a CSV file needs commas")
    if column is not None and not names:
        raise FileUnreadableError("it has no line, not even one with the names of its columns")
    if column is not None and column not in names:
        raise FileUnreadableError(f"it has no column {column!r:.80}; exclude_column says which it is")
    if any(count > 1 for count in Counter(names).values()):
        raise FileUnreadableError("two of its columns have the same name")


def _json_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FileUnreadableError("the next line has two values of the same name in one object")
    return found


def _read_json_lines(file: Any, column: str | None) -> Iterator[Mapping[Any, Any]]:
    for line in io.TextIOWrapper(file, encoding="utf-8-sig"):
        if line.strip():
            row = json.loads(line, object_pairs_hook=_json_object)
            if not isinstance(row, dict):
                raise FileUnreadableError("the next line is no JSON object; each line must be one")
            yield row


def _read_parquet(file: Any, column: str | None) -> Iterator[Mapping[Any, Any]]:
    pyarrow, parquet = _pyarrow()
    try:
        # Without a buffer and with threads, it reads all columns of a row group, which may be the whole file, at once.
        reader = parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        _check_names(reader.schema_arrow.names, column)
        for batch in reader.iter_batches(batch_size=_ROWS_AT_A_TIME, use_threads=False):
            yield from _rows_of(batch, pyarrow)
    except pyarrow.ArrowException:
        raise FileUnreadableError("it is no Parquet file, or a broken one") from None


def _rows_of(batch: Any, pyarrow: Any) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except pyarrow.ArrowException as error:
        # The file is whole; two fields of one name inside a value, or a value beyond Python's types.
        raise FileUnreadableError(f"there is a value that Python cannot hold ({type(error).__name__})") from None


def _pyarrow() -> tuple[Any, Any]:
    try:
        # From here, as it may not be installed.
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise FileUnreadableError(_INSTALL_PYARROW) from None
    return pa, pq


class WrittenFile(io.RawIOBase):
    """
    A file that is being written, and what has been written.

    :param file: Where it goes.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._digest = hashlib.sha256()
        #: Bytes.
        self.size = 0

    @property
    def sha256(self) -> str:
        """The SHA-256 digest in hexadecimal digits."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, data: Any) -> int:
        """Write all of it."""
        data = bytes(data)
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        """Return how much has been written."""
        return self.size


def partial_paths(path: ObjectStoragePath, context: Mapping[str, Any]) -> list[ObjectStoragePath]:
    """
    Return where each try of a task, up to this one, writes a file until it is whole.

    :param path: The file.
    """
    task = context.get("ti")
    facts = [getattr(task, name, None) for name in ("dag_id", "task_id", "run_id", "map_index")]
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    tries = range(1, (getattr(task, "try_number", 1) or 1) + 1)
    # File systems take names of 255 bytes.
    begin = path.name.encode()[:_PARTIAL_NAME_BYTES].decode(errors="ignore")
    return [path.with_name(f".{begin}.{name}-{number}.partial") for number in tries]


@contextmanager
def replacing(path: ObjectStoragePath, context: Mapping[str, Any]) -> Iterator[WrittenFile]:
    """
    Write a file that appears under its name only when it is whole, and replaces the one before.

    At the end, the file is read again, and compared with what was written.

    :param path: The file. Until it is whole, it lies beside that, under a name that is gone at the end in any case.
    :param context: The context of the task; its earlier tries may have left something there, too.
    :raises FileNotWrittenError: Something else lies at the path.
    :raises OSError: The file cannot be written.
    """
    *left, partial = partial_paths(path, context)
    for old in left:
        remove(old)
    try:
        if _is_local(path):
            Path(path.path).parent.mkdir(parents=True, exist_ok=True)
        if _is_folder(path):
            raise IsADirectoryError(f"{str(path)!r:.200} is a folder. Remove it, or give the path of a file.")
        with _open(partial, "wb") as file:
            written = WrittenFile(file)
            yield written
        _move(partial, path)
        _compare(path, written)
    except BaseException as error:
        remove(partial)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            # A full disk does not say of which file.
            error.filename = str(path)
        raise


def remove(path: ObjectStoragePath) -> None:
    """
    Remove a file that names people, if there is one.

    If that is not permitted, empty it. A failure is logged, never raised.
    """
    storage = path.fs
    try:
        # Unlike `rm` and `unlink`, it takes no name for a pattern.
        storage.rm_file(path.path)
        return
    except FileNotFoundError:
        return
    except Exception as error:  # noqa: BLE001  each storage has its own
        reason = type(error).__name__
    remains = "It may hold names and numbers"
    with suppress(Exception):
        if not storage.exists(path.path):
            return
        storage.pipe_file(path.path, b"")
        remains = "It is empty now"
    log.warning("%s could not be removed (%s). %s. Remove it, or permit this task to remove it.", path, reason, remains)


def _is_local(path: ObjectStoragePath) -> bool:
    return path.protocol in ("", "file", "local")


def _is_folder(path: ObjectStoragePath) -> bool:
    try:
        return bool(path.fs.isdir(path.path))
    except Exception:  # noqa: BLE001  each storage has its own, if it does not permit to list files
        return False


def _move(source: ObjectStoragePath, target: ObjectStoragePath) -> None:
    """Move a file, in place of the one before. A name is no pattern, whatever characters are in it."""
    # From here, as no local file needs it.
    from fsspec import AbstractFileSystem

    storage = source.fs
    if _is_local(target):
        Path(source.path).replace(target.path)
    elif storage.async_impl or type(storage).mv is AbstractFileSystem.mv:
        # The copy is seen when it is whole. Their `mv` would take * ? [ ] for a pattern.
        storage.cp_file(source.path, target.path)
        remove(source)
    else:
        # It renames the file.
        storage.mv(source.path, target.path)


def _compare(path: ObjectStoragePath, written: WrittenFile) -> None:
    digest = hashlib.sha256()
    size = 0
    path.fs.invalidate_cache()
    with suppress(FileNotFoundError), path.fs.open(path.path, "rb") as file:
        while data := file.read(1024 * 1024):
            digest.update(data)
            size += len(data)
    if digest.hexdigest() != written.sha256:
        raise FileNotWrittenError(
            f"{str(path)!r:.200} was written, but what lies there now is something else ({size:,} bytes instead of "
            f"{written.size:,}). If no other task writes to the same path, give one without special characters."
        )


def write_rows(
    rows: Iterable[Sequence[Any]],
    columns: Mapping[str, type],
    file: WrittenFile,
    path: str,
) -> None:
    """
    Write rows in the format that a path's end says.

    :param rows: The values of each row, in the order of the columns.
    :param columns: Names and types of the columns.
    :param file: Where they go.
    """
    found, is_compressed = file_format(path)
    if found is FileFormat.PARQUET:
        _write_parquet(rows, columns, file)
        return
    write = _write_csv if found is FileFormat.CSV else _write_json_lines
    if is_compressed:
        # Without time and name, equal rows make equal files.
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            write(rows, columns, packed)
    else:
        write(rows, columns, file)


@contextmanager
def _text(file: Any, newline: str) -> Iterator[io.TextIOWrapper]:
    text = io.TextIOWrapper(io.BufferedWriter(file, 1024 * 1024), encoding="utf-8", newline=newline)
    try:
        yield text
    except BaseException:
        # Otherwise, it would write what it has left when it is forgotten, and the file is closed by then.
        with suppress(OSError):
            text.detach().detach()
        raise
    # The file stays open.
    text.detach().detach()


def _write_csv(rows: Iterable[Sequence[Any]], columns: Mapping[str, Any], file: Any) -> None:
    with _text(file, newline="") as text:
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(rows)


def _write_json_lines(rows: Iterable[Sequence[Any]], columns: Mapping[str, Any], file: Any) -> None:
    with _text(file, newline="\n") as text:
        for row in rows:
            text.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")


def _write_parquet(rows: Iterable[Sequence[Any]], columns: Mapping[str, Any], file: Any) -> None:
    pa, pq = _pyarrow()
    types = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    rows = iter(rows)
    with pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema) as writer:
        while batch := list(islice(rows, _ROWS_AT_A_TIME)):
            writer.write_batch(pa.record_batch([*zip(*batch, strict=True)], schema=schema))
