"""`FolderStore`, a store in a folder of a file system: the default storage, which needs no server.

Files are written to a staging folder and then renamed, so that readers never see an incomplete object.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from errno import ENOTDIR
from pathlib import Path

from polarmap.errors import MissingObjectError, StorageError
from polarmap.storage import Data, check_object_key
from polarmap.worker.locations import FolderLocation
from polarmap.worker.processes import ProcessIdentity

_STAGING_FOLDER = ".unfinished"
COPY_CHUNK_BYTES = 1 << 20
# It is not known whether a process on another machine is still running. If an unfinished file of such a
# process has not changed for this many seconds, the file is considered stale and can be deleted.
STALE_WRITER_SECONDS = 86_400.0


class FolderStore:
    """A store in a folder of the file system. Each object is a file, and its key is the relative path.

    The folder is created when the first object is stored. Each file is written under a temporary name and
    then renamed, so objects are never incomplete, even if this process crashes. Files are not synced to disk,
    so a crash of the whole machine may leave incomplete objects.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = FolderStore(folder)
    ...     store.put("a/b", b"abcdef")
    ...     store.get("a/b", 1, 3), store.size("a/b"), store.keys("a/")
    (b'bc', 6, ['a/b'])
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = _check_folder_path(root)
        self.location = FolderLocation(str(self.root))  # tells workers where to read the objects

    @classmethod
    def default(cls) -> FolderStore:
        """Return the default store, in the folder named by the environment variable POLARMAP_STORE.

        If the variable is not set, the folder is polarmap/ in the XDG data directory.
        """
        configured_path = os.environ.get("POLARMAP_STORE")
        if configured_path:
            return cls(configured_path)
        data_directory = os.environ.get("XDG_DATA_HOME") or os.path.join("~", ".local", "share")
        return cls(os.path.join(data_directory, "polarmap"))

    @property
    def name(self) -> str:
        """The path of the folder, for error messages."""
        return f"folder {str(self.root)!r}"

    def __repr__(self) -> str:
        return f"FolderStore({str(self.root)!r})"

    def put(self, key: str, data: Data) -> None:
        """Store `data` under `key`, replacing any existing object."""
        with (
            self._convert_os_errors(key, missing_errors=()),
            self._write_staging_file(self._get_key_path(key)) as file,
        ):
            file.write_bytes(data)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return an object's bytes from `start` to `stop` (exclusive), or to the end if `stop` is None.

        Raises MissingObjectError if the object does not exist.
        """
        with self._convert_os_errors(key), open(self._get_key_path(key), "rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(max(0, stop - start))

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""
        try:
            with self._convert_os_errors(key):
                path = self._get_key_path(key)
                return path.stat().st_size if path.is_file() else None
        except MissingObjectError:
            return None

    def keys(self, prefix: str) -> list[str]:
        """Return the sorted keys of all objects whose key begins with `prefix`."""
        folder = prefix.rpartition("/")[0]
        start = self._get_key_path(folder) if folder else self.root
        with self._convert_os_errors(prefix):
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
            return sorted(key for key in self._iterate_keys_below(start) if key.startswith(prefix))

    def concatenate(self, source_keys: Sequence[str], target_key: str) -> bool:
        """Store the concatenation of objects as a new object. Return True, because this is always possible.

        If there is only one source object, the new object is a hard link to it if the file system allows.
        """
        paths = [self._get_key_path(source_key) for source_key in source_keys]
        with (
            self._convert_os_errors(source_keys[0]),
            self._write_staging_file(self._get_key_path(target_key)) as joined_file,
        ):
            if len(paths) == 1:
                # If no hard link can be created, copy the file below. A missing file raises an error there.
                with contextlib.suppress(OSError):
                    os.link(paths[0], joined_file)
                    return True
            with open(joined_file, "wb") as target:
                for path in paths:
                    with open(path, "rb") as file:
                        shutil.copyfileobj(file, target, COPY_CHUNK_BYTES)
        return True

    def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects with the given keys, and the subfolders that become empty."""
        for key in keys:
            path = self._get_key_path(key)
            with self._convert_os_errors(key):
                path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self.root:
                    break
                try:
                    parent.rmdir()
                except OSError:
                    break

    def remove_stale_files(self) -> None:
        """Delete unfinished files of processes that died while storing an object."""
        with contextlib.suppress(OSError):
            for path in (self.root / _STAGING_FOLDER).iterdir():
                owner = ProcessIdentity.parse(path.name.rpartition("+")[0])
                is_stale = time.time() - path.stat().st_mtime > STALE_WRITER_SECONDS
                if owner.is_dead() or (is_stale and not owner.is_on_this_machine()):
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _write_staging_file(self, path: Path) -> Iterator[Path]:
        """Write a file atomically: yield a temporary path for its content, and rename it to `path` on exit.

        If an exception is raised in the `with` block, the temporary file is deleted instead.
        """
        folder = self.root / _STAGING_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        staging_path = folder / f"{ProcessIdentity.current()}+{uuid.uuid4().hex}"
        try:
            yield staging_path
            self._rename_into_place(staging_path, path)
        finally:
            # The temporary file may still exist, because os.replace does nothing if both paths are links to
            # the same file.
            staging_path.unlink(missing_ok=True)

    def _rename_into_place(self, source: Path, target: Path) -> None:
        """Rename a file, creating the target folder. Retry if `delete` concurrently removes that folder."""
        for attempt in range(100):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
            except (FileNotFoundError, FileExistsError):
                if attempt == 99:
                    raise
            else:
                return

    def _get_key_path(self, key: str) -> Path:
        return self.root.joinpath(*check_object_key(key).split("/"))

    def _iterate_keys_below(self, start_folder: Path) -> Iterator[str]:
        for folder, subfolders, files in os.walk(start_folder):
            if _STAGING_FOLDER in subfolders:
                subfolders.remove(_STAGING_FOLDER)
            for file in files:
                yield Path(folder, file).relative_to(self.root).as_posix()

    @contextlib.contextmanager
    def _convert_os_errors(
        self, key: str, missing_errors: tuple[type[OSError], ...] = (FileNotFoundError, IsADirectoryError)
    ) -> Iterator[None]:
        """Convert an OSError in a `with` block to a StorageError whose message names `key`.

        Exceptions of the types `missing_errors` are converted to MissingObjectError.
        """
        try:
            yield
        except missing_errors as error:
            raise MissingObjectError(f"the object {key!r} does not exist in {self.name}") from error
        except OSError as error:
            raise StorageError(f"{self.name} cannot be used: {error.strerror or error}: {key!r}") from error


def _check_folder_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder, with ~ expanded. The folder does not have to exist.

    Raises StorageError if the path is invalid.
    """
    try:
        text = os.fspath(path)
        if text and b"\0" not in os.fsencode(text):
            return Path(text).expanduser().absolute()
        reason = "a path must not be empty or contain NUL characters; '.' is the current folder"
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error)
    raise StorageError(f"{path!r} is not the path of a folder: {reason}")
