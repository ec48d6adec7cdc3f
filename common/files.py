"""Writing files so that a reader finds the old one or the new one, never half of one."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from common.errors import UserError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; move it into place when the block ends without an error.

    Raises:
        UserError: the folder cannot be written to, or `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file to write")
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _blamed_on(path, temporary):
            yield temporary
            _finish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill; when the block ends without an error, move its files into `path`.

    Nothing is moved before all is written; then file by file, so that each is the old one or the new one, whole.
    Files that `path` holds under other names stay.

    Raises:
        UserError: `path` cannot be written.
    """
    path = make_folder(path)
    temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=path))
    try:
        with _blamed_on(path, temporary):
            yield temporary
            for source in sorted(p for p in temporary.rglob("*") if p.is_file()):
                target = path / source.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                _finish(source, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _blamed_on(path: Path, temporary: Path) -> Iterator[None]:
    """Turn an error of writing into a UserError; errors about other files pass through."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be written ({error})") from None
    except OSError as error:
        named = None if error.filename is None else Path(os.fsdecode(error.filename))
        ours = named is None or any(named.is_relative_to(place) for place in (path, temporary))
        if not ours:
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def _finish(source: Path, target: Path) -> None:
    """Move a written file into place: on the disk before it has its name, and readable as the umask allows."""
    umask = os.umask(0)
    os.umask(umask)
    source.chmod(0o666 & ~umask)  # safetensors creates its files for the owner alone
    with source.open("rb") as stream:
        os.fsync(stream.fileno())
    source.replace(target)


def remove_unfinished(folder: Path) -> None:
    """Take away what writers that were killed have left half-written in a folder."""
    for path in (*folder.glob(".*.partial"), *folder.glob(".tmp??????")):  # the latter are safetensors' own
        if path.is_file():
            path.unlink()
    for path in folder.glob(".partial-*"):
        shutil.rmtree(path, ignore_errors=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON for people and programs: indented, UTF-8, null in the place of nan and infinity."""
    with atomic_file(path) as temporary:
        temporary.write_text(to_json(content) + "\n", encoding="utf-8")


def to_json(content: Any) -> str:
    """Indented JSON, null in the place of nan and infinity."""
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class ArrayWriter:
    """Writes a `.npy` of (rows, dim) block by block, the number of rows known only at the end."""

    def __init__(self, path: Path, dim: int, dtype: str) -> None:
        self.rows, self.dim, self.dtype = 0, dim, np.dtype(dtype)
        self._stream = path.open("w+b")
        self._write_header()

    def write(self, block: np.ndarray) -> None:
        """Append (n, dim) values, converted to the file's dtype."""
        self._stream.write(np.ascontiguousarray(block, dtype=self.dtype).tobytes())
        self.rows += len(block)

    def close(self) -> None:
        """Put the number of rows into the header, and close."""
        self._stream.seek(0)
        self._write_header()
        self._stream.close()

    def _write_header(self) -> None:
        # numpy pads its header so that a growing first axis still fits: the length never changes.
        description = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": description, "fortran_order": False, "shape": (self.rows, self.dim)}
        np.lib.format.write_array_header_1_0(self._stream, header)


def refuse_no_folder(path: str | Path) -> None:
    """UserError where a folder could not be made or written to; makes none."""
    place = next(place for place in (Path(path), *Path(path).absolute().parents) if place.exists())
    if not place.is_dir():
        raise UserError(f"{path}: cannot be made a folder ({place} is a file)")
    if not os.access(place, os.W_OK):
        raise UserError(f"{path}: nothing can be written there ({place} may not be written to)")


def make_folder(path: str | Path) -> Path:
    """Create a folder and those above it; UserError where that cannot be done or nothing can be written there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made a folder ({error.strerror})") from None
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{path}: nothing can be written there ({error.strerror})") from None
    return path
