"""Places on this machine or on any filesystem that pyarrow or fsspec reaches, with one small interface.

A local place is a ``pathlib.Path``, and needs the standard library only. Any other is a ``RemotePath``, which has the
part of that interface that studies need: the same code writes ledger, checkpoints and weights everywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import os
import posixpath
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from eqscale.errors import InputError

if TYPE_CHECKING:
    from pyarrow import fs

_PYARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")


class NoAnswer(InputError, OSError):
    """A storage that refuses, or is away: also an OSError, for whoever can wait or do without."""


@dataclasses.dataclass(frozen=True)
class RemotePath:
    """A file or folder of an object store or another remote filesystem."""

    filesystem: fs.FileSystem
    path: str
    uri: str
    """The same as ``open_place`` takes it; query parameters (endpoint, region) included."""

    def __truediv__(self, name: str) -> RemotePath:
        return self._at(lambda path: posixpath.join(path, name))

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """Last part of the path."""
        return posixpath.basename(self.path)

    @property
    def stem(self) -> str:
        """Name without its suffix."""
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> RemotePath:
        """The folder that holds it."""
        return self._at(posixpath.dirname)

    def _at(self, moved: Callable[[str], str]) -> RemotePath:
        base, mark, query = self.uri.partition("?")
        return RemotePath(self.filesystem, moved(self.path), moved(base) + mark + query)

    def exists(self) -> bool:
        """Whether a file or folder is there; raises NoAnswer."""
        return self._info(self.path).type.name != "NotFound"

    def is_file(self) -> bool:
        """Whether a file is there."""
        return self._info(self.path).is_file

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Make the folder and those above it, where the filesystem has folders."""
        self.filesystem.create_dir(self.path, recursive=True)

    def read_bytes(self) -> bytes:
        """Content of the file; raises FileNotFoundError."""
        with self.filesystem.open_input_stream(self.path) as stream:
            return stream.read()

    def write_bytes(self, content: bytes) -> None:
        """Replace the file. On an object store the new content appears at once, complete, when it is closed."""
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(content)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file."""
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Files directly in this folder whose names match."""
        files = [info.base_name for info in self.listing() if info.is_file]
        return (self / name for name in files if fnmatch.fnmatchcase(name, pattern))

    def listing(self) -> list[fs.FileInfo]:
        """What lies directly in this folder; nothing if it isn't there. Raises NoAnswer."""
        from pyarrow import fs

        return self._info(fs.FileSelector(self.path, allow_not_found=True))

    def _info(self, what: str | fs.FileSelector) -> Any:
        try:
            return self.filesystem.get_file_info(what)
        except _failures(self) as error:
            raise NoAnswer(f"storage {self} doesn't answer: {_reason(error)}") from error


AnyPath = Path | RemotePath


def open_place(text: str | Path) -> AnyPath:
    """The place that a path or URI names: ``studies``, ``file:///…``, ``s3://bucket/…``, ``gs://…``, ….

    pyarrow's filesystems come first, then those that fsspec finds installed. Nothing is read or written.

    Raises InputError for a URI that no filesystem understands.
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise InputError(f"storage {text}: not a URI ({error})") from error
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if secrets := _secrets(parts):
        raise InputError(
            f"storage {parts.scheme}://…{parts.path}: no {secrets} in a URI, which is stored and printed: credentials "
            "come from the environment or a profile, such as ~/.aws/credentials"
        )
    from pyarrow import ArrowException, fs

    text = text.rstrip("/")
    try:
        if parts.scheme in _PYARROW_SCHEMES:
            filesystem, path = fs.FileSystem.from_uri(text)
        else:
            import fsspec

            other, path = fsspec.core.url_to_fs(text)
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(other))
    except (ArrowException, ImportError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"storage {text!r} can't be opened: {reason}") from error
    return RemotePath(filesystem, path, text)


def _secrets(parts: SplitResult) -> str:
    """What of a URI must not be seen by others: a password, or a parameter that holds one; empty if nothing."""
    hidden = ("secret", "token", "password", "access_key")
    named = [name for name, _ in parse_qsl(parts.query) if any(word in name.lower() for word in hidden)]
    return "password or secret key" if parts.password is not None else "".join(f"parameter {n!r}" for n in named[:1])


def matching(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """Files directly in a folder whose names match, sorted by name."""
    return sorted(folder.glob(pattern), key=lambda path: path.name)


def subfolders(place: AnyPath) -> list[str]:
    """Names of the folders directly in a folder, sorted."""
    if isinstance(place, RemotePath):
        return sorted(info.base_name for info in place.listing() if not info.is_file)
    return sorted(path.name for path in place.glob("*") if path.is_dir())


def absolute(place: AnyPath) -> AnyPath:
    """The same place, named so that it means the same in any folder of any process."""
    return place if isinstance(place, RemotePath) else place.resolve()


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(path, RemotePath):
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk doesn't say which file had no room
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``write_atomically`` for text, as UTF-8."""
    write_atomically(path, text.encode())


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file name for writers that need one; the file becomes ``path`` when the context ends without an error."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_folder(path: AnyPath) -> None:
    """Delete a folder with all it holds; does nothing if it isn't there."""
    if isinstance(path, RemotePath):
        with contextlib.suppress(OSError):
            path.filesystem.delete_dir(path.path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def check_writable(place: AnyPath, what: str) -> None:
    """Write and delete a probe.

    Raises:
        InputError: names the place and the reason, before anything is spent.
    """
    probe = place / f".probe-{os.getpid()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except _failures(place) as error:
        raise InputError(f"{what} {str(place)!r} can't be written: {_reason(error)}") from error


def _failures(place: AnyPath) -> tuple[type[Exception], ...]:
    """What a place raises when it fails."""
    if isinstance(place, Path):
        return (OSError,)
    from pyarrow import ArrowException

    return OSError, ArrowException


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return getattr(error, "strerror", None) or lines[0][:200]


def check_outputs(*files: Path | None, folder: Path | None = None) -> None:
    """Refuse local output paths before anything is computed; nothing is made or written.

    Args:
        files: to be written into folders that exist.
        folder: to be made, if it isn't there.

    Raises:
        InputError: a folder is missing or not writable, or a path is a folder where a file is meant or the reverse.
    """
    for path in filter(None, files):
        if path.is_dir():
            raise InputError(f"{path}: is a folder, not a file to write")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise InputError(f"{path}: the folder {path.parent} does not exist or is not writable")
    if folder is not None:
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise InputError(f"{folder}: {existing} is not a writable folder")
