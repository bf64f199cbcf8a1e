"""One directory or object-store prefix: the few operations every protocol of trtfleet is built on.

Reading and streaming writes go through pyarrow's filesystems; put-if-absent, which pyarrow lacks, and
listings with entity tags go through obstore. Both find their credentials in the environment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import obstore
import pyarrow as pa
import pyarrow.fs as pafs
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError
from obstore.store import LocalStore, S3Store

from ..errors import OutputError, TrtfleetError, UsageError

if TYPE_CHECKING:
    import pyarrow.compute as pc
    import pyarrow.dataset as pads

__all__ = ["MOST_RECORD_BYTES", "Entry", "Storage", "foreign_errors", "one_line"]

MOST_RECORD_BYTES = 512 << 20
"""What is read into memory in one piece has at most so many bytes, unless the caller says otherwise."""

_FULL = "No space left on device"
_REPEATED_AFTER_S = (0.1, 0.5, 2.0)
_NO_FOLDER = "No such file or directory"
_DENIED = ("credential", "access denied", "accessdenied", "forbidden", "accesskeyid", "signaturedoesnotmatch")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored object.

    Attributes:
        path: Relative to its storage's root, with forward slashes.
        size_bytes: Its length.
        version: Changes when the content does: the ETag in an object store, the modification time on disk.
    """

    path: str
    size_bytes: int
    version: str


def one_line(error: BaseException) -> str:
    """The first line of an error's message, short enough for a terminal."""
    text = (str(error) or type(error).__name__).strip().splitlines()
    line = text[0].strip() if text else type(error).__name__
    return line if len(line) <= 300 else line[:297] + "..."


@contextlib.contextmanager
def foreign_errors(kind: type[TrtfleetError], doing: str, hint: str = "") -> Iterator[None]:
    """Turns what storage and Arrow libraries raise inside the block into ``kind``."""
    try:
        yield
    except TrtfleetError:
        raise
    except (OSError, BaseError, pa.ArrowException, UnicodeError) as error:
        raise kind(f"{doing}: {_words(error)}", _hint_for(error) or hint or "check that location") from error


def _words(error: BaseException) -> str:
    # Libraries wrap the most usual of all failures in words of their own.
    return _FULL if _FULL.lower() in str(error).lower() else one_line(error)


def _hint_for(error: BaseException) -> str:
    text = str(error).lower()
    if _FULL.lower() in text or "quota exceeded" in text:
        return "free some space there"
    if any(word in text.replace("_", "") for word in _DENIED):
        return "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
    if "nosuchbucket" in text or "bucket does not exist" in text:
        return "create the bucket first"
    if isinstance(error, PermissionError) or "permission denied" in text:
        return "check the permissions of that path"
    if isinstance(error, NotADirectoryError) or "not a directory" in text:
        return "a part of that path is a file: name another"
    return ""


class Storage:
    """A root that objects are read from and written to by relative path.

    Instances hold no connection of their own worth closing, compare by URL, and travel between processes
    as their URL.

    Args:
        url: A directory, ``file://`` URL, or ``s3://bucket/prefix``. Only a ``file://`` URL is
            percent-decoded; an S3 key stands as it is.

    Raises:
        UsageError: The URL's scheme is not supported or its bucket is missing.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        scheme, marker, rest = text.partition("://")
        scheme = scheme.lower()
        self._store: Any
        if marker and scheme == "s3":
            bucket, _, prefix = rest.partition("/")
            prefix = prefix.strip("/")
            if not bucket:
                raise UsageError(f"{text} names no bucket", "write s3://bucket/prefix")
            self.is_local = False
            self.root = f"{bucket}/{prefix}" if prefix else bucket
            self.url = f"s3://{self.root}"
            with foreign_errors(OutputError, f"cannot set up access to {self.url}"):
                self._filesystem, _ = pafs.FileSystem.from_uri(f"s3://{bucket}")
                self._store = S3Store(bucket, prefix=prefix or None, client_options={"allow_http": True})
        elif not marker or scheme == "file":
            host, _, path = rest.partition("/")
            if host not in ("", "localhost"):
                raise UsageError(f"{text} names the host {host!r}", "write file:///path")
            self.is_local = True
            self.root = os.path.abspath(f"/{unquote(path)}" if marker else os.path.expanduser(text))
            self.url = self.root
            self._filesystem = pafs.LocalFileSystem()
            self._store = None
        else:
            raise UsageError(f"{text}: {scheme}:// is not supported", "use a local path or s3://")

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.url,))

    def describe(self, path: str = "") -> str:
        """The full name of an object, for messages and records."""
        return f"{self.url}/{path}" if path else self.url

    def _objects(self) -> Any:
        # A local store needs its directory, which reading must not create.
        if self._store is None:
            # A new place is its user's alone; a file in its place is for the store to complain about.
            self._repeated(self._open_folder)
        return self._store

    def _open_folder(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.makedirs(self.root, mode=0o700)
        self._store = LocalStore(self.root, mkdir=True)

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def exists(self) -> bool:
        """Whether the root directory exists; an object store's prefix always does."""
        return not self.is_local or os.path.isdir(self.root)

    def put_new(self, path: str, data: bytes) -> bool:
        """Creates an object, atomically, unless it is there.

        On S3 a request whose answer is lost may have been carried out: it is repeated, and an object that
        stands there with this very content counts as created. Records of which one must win therefore name
        who wrote them.

        Returns:
            False when another object was already there; it is then unchanged.
        """
        objects = self._objects()
        try:
            self._repeated(lambda: obstore.put(objects, path, data, mode="create"))
        except (AlreadyExistsError, PreconditionError, FileExistsError):
            return self.get(path) == data
        return True

    def _repeated(self, request: Callable[[], object]) -> None:
        """Sends a request until it is answered: obstore repeats only what it knows to be harmless.

        On disk, what is repeated is a write into a folder that another process removed meanwhile.
        """
        for wait_s in (*_REPEATED_AFTER_S, None):
            try:
                request()
            except (GenericError, FileNotFoundError) as error:
                if wait_s is None or (self.is_local and _NO_FOLDER not in str(error)):
                    raise
                time.sleep(wait_s)
            else:
                return

    def put(self, path: str, data: bytes) -> None:
        """Creates or replaces an object; a reader sees the old or the new one, never a part."""
        objects = self._objects()
        self._repeated(lambda: obstore.put(objects, path, data))

    def get(self, path: str, *, most_bytes: int | None = MOST_RECORD_BYTES) -> bytes | None:
        """An object's content, or None when there is none.

        Raises:
            OSError: It has more than ``most_bytes`` and is left unread; None takes any number.
        """
        if not self.exists():
            return None
        try:
            found = obstore.get(self._objects(), path)
            size_bytes = found.meta["size"]
            if most_bytes is not None and size_bytes > most_bytes:
                raise OSError(f"{path} has {size_bytes:,} bytes, at most {most_bytes:,} are read")
            return bytes(found.bytes())
        except FileNotFoundError:
            return None

    def head(self, path: str) -> Entry | None:
        """An object's size and version, or None when there is none."""
        if not self.exists():
            return None
        try:
            return self._entry(obstore.head(self._objects(), path))
        except FileNotFoundError:
            return None

    def list(self, prefix: str = "") -> list[Entry]:
        """Every object below a folder, sorted by path."""
        if not self.exists():
            return []
        found: list[Entry] = []
        with self._may_vanish():
            for chunk in obstore.list(self._objects(), prefix or None, chunk_size=1000):
                found.extend(map(self._entry, chunk))
        return sorted(found, key=lambda entry: entry.path)

    def children(self, prefix: str = "") -> tuple[Sequence[str], Sequence[Entry]]:
        """What lies directly in a folder: names of folders, and objects; sorted, without going deeper."""
        if not self.exists():
            return [], []
        found: Any = {"common_prefixes": (), "objects": ()}
        with self._may_vanish():
            found = obstore.list_with_delimiter(self._objects(), prefix or None)
        folders = sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])
        return folders, sorted(map(self._entry, found["objects"]), key=lambda entry: entry.path)

    @contextlib.contextmanager
    def _may_vanish(self) -> Iterator[None]:
        """On disk, a folder that another process removes while it is listed is one without content."""
        try:
            yield
        except FileNotFoundError:
            if not self.is_local:
                raise

    def _entry(self, meta: Any) -> Entry:
        version = meta["last_modified"].isoformat() if self.is_local else meta["e_tag"]
        return Entry(path=meta["path"], size_bytes=meta["size"], version=version or "")

    def delete(self, paths: Iterable[str]) -> None:
        """Deletes objects; those already gone are passed over."""
        if not self.is_local:
            doomed = list(paths)
            self._repeated(lambda: obstore.delete(self._objects(), doomed))
            return
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(self._objects(), path)

    def remove_folder(self, path: str) -> None:
        """Deletes a folder with all that is in it; on disk nothing can be moved into it any more."""
        if not self.is_local:
            self.delete([entry.path for entry in self.list(path)])
            return
        while os.path.isdir(self._full(path)):
            # Something may come into it meanwhile, or somebody else be at the same work.
            try:
                shutil.rmtree(self._full(path))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise

    def remove_empty_folders(self, path: str = "") -> None:
        """Removes a folder, those below it, and its parent, each if nothing is in it; only disks have any."""
        if not self.is_local:
            return
        folders = [folder for folder, _, _ in os.walk(self._full(path), topdown=False)]
        for folder in [*folders, os.path.dirname(self._full(path))]:
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def publish(self, source: str, target: str) -> None:
        """Makes a whole object visible under its final name, replacing what stands there.

        On disk the object is renamed, in an object store copied by the server.

        Raises:
            FileNotFoundError: The object is not there, renamed by an earlier call perhaps.
        """
        if self.is_local:
            os.replace(self._full(source), self._full(target))
        else:
            obstore.copy(self._objects(), source, target, overwrite=True)

    def link_or_copy(self, source: str, target: str) -> None:
        """Gives an object a second name, without moving bytes where the storage allows it."""
        if self.is_local:
            temporary = self._full(target) + ".link"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            os.makedirs(os.path.dirname(temporary), exist_ok=True)
            os.link(self._full(source), temporary)
            os.replace(temporary, self._full(target))
            # rename(2) does nothing between two links of one file.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        else:
            obstore.copy(self._objects(), source, target, overwrite=True)

    def open_input(self, path: str = "", *, mapped: bool = False) -> pa.NativeFile:
        """Opens an object for random access, on request mapped into memory if local; the caller closes it."""
        if mapped and self.is_local:
            return pa.memory_map(self._full(path))
        return self._filesystem.open_input_file(self._full(path))

    def parquet_fragment(self, path: str, guarantee: pc.Expression) -> pads.ParquetFileFragment:
        """An Arrow dataset fragment over one Parquet object, every row of which satisfies ``guarantee``."""
        # For the driver alone: it brings pandas along where that is installed, at 0.2 s an actor.
        import pyarrow.dataset as pads

        return pads.ParquetFileFormat().make_fragment(
            self._full(path), filesystem=self._filesystem, partition_expression=guarantee
        )

    def open_output(self, path: str) -> pa.NativeFile:
        """Opens a new object for streaming; only ``close`` completes it, and the caller must call it."""
        full = self._full(path)
        if self.is_local:
            os.makedirs(os.path.dirname(full), mode=0o700, exist_ok=True)
        return self._filesystem.open_output_stream(full)
