"""A folder as a store: the embedded default."""

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
STALE_WRITER_SECONDS = 86_400.0  # without a sign of life, a writer on another machine is taken for dead


class FolderStore:
    """Objects as files below a folder, which is made when something is stored.

    Files appear whole: they are written under another name first. That survives a crash of the
    process, not one of the machine: files are not forced to disk.

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
        self.location = FolderLocation(str(self.root))  # for workers

    @classmethod
    def default(cls) -> FolderStore:
        """$POLARMAP_STORE, or polarmap/ in the user's data folder (XDG)."""
        configured_path = os.environ.get("POLARMAP_STORE")
        if configured_path:
            return cls(configured_path)
        data_directory = os.environ.get("XDG_DATA_HOME") or os.path.join("~", ".local", "share")
        return cls(os.path.join(data_directory, "polarmap"))

    @property
    def name(self) -> str:
        """The folder."""
        return f"folder {str(self.root)!r}"

    def __repr__(self) -> str:
        return f"FolderStore({str(self.root)!r})"

    def put(self, key: str, data: Data) -> None:
        """Write a file under a name of its own, then rename it."""
        with (
            self._convert_os_errors(key, missing_errors=()),
            self._write_staging_file(self._get_key_path(key)) as file,
        ):
            file.write_bytes(data)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes start..stop of a file."""
        with self._convert_os_errors(key), open(self._get_key_path(key), "rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(max(0, stop - start))

    def size(self, key: str) -> int | None:
        """Bytes of a file; None if there is none."""
        try:
            with self._convert_os_errors(key):
                path = self._get_key_path(key)
                return path.stat().st_size if path.is_file() else None
        except MissingObjectError:
            return None

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix`, sorted."""
        folder = prefix.rpartition("/")[0]
        start = self._get_key_path(folder) if folder else self.root
        with self._convert_os_errors(prefix):
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
            return sorted(key for key in self._iterate_keys_below(start) if key.startswith(prefix))

    def concatenate(self, source_keys: Sequence[str], target_key: str) -> bool:
        """A file of the bytes of others in a row; a hard link to a single one, where there are such."""
        paths = [self._get_key_path(source_key) for source_key in source_keys]
        with (
            self._convert_os_errors(source_keys[0]),
            self._write_staging_file(self._get_key_path(target_key)) as joined_file,
        ):
            if len(paths) == 1:
                with contextlib.suppress(OSError):  # no links here, or no such file: told below
                    os.link(paths[0], joined_file)
                    return True
            with open(joined_file, "wb") as target:
                for path in paths:
                    with open(path, "rb") as file:
                        shutil.copyfileobj(file, target, COPY_CHUNK_BYTES)
        return True

    def delete(self, keys: Sequence[str]) -> None:
        """Remove files, and the folders that they leave empty."""
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
        """Remove unfinished files whose writer has died."""
        with contextlib.suppress(OSError):
            for path in (self.root / _STAGING_FOLDER).iterdir():
                owner = ProcessIdentity.parse(path.name.rpartition("+")[0])
                is_stale = time.time() - path.stat().st_mtime > STALE_WRITER_SECONDS
                if owner.is_dead() or (is_stale and not owner.is_on_this_machine()):
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _write_staging_file(self, path: Path) -> Iterator[Path]:
        """Where to write a file that then is renamed to `path`, or removed if that fails."""
        folder = self.root / _STAGING_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        staging_path = folder / f"{ProcessIdentity.current()}+{uuid.uuid4().hex}"
        try:
            yield staging_path
            self._rename_into_place(staging_path, path)
        finally:  # a rename to another link of the same file leaves it
            staging_path.unlink(missing_ok=True)

    def _rename_into_place(self, source: Path, target: Path) -> None:
        """Rename; again when another thread has just removed the empty folder it goes to."""
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
        """Errors of the file system as ours; those `missing_errors` mean that there is no such object."""
        try:
            yield
        except missing_errors as error:
            raise MissingObjectError(f"there is no object {key!r} in {self.name}") from error
        except OSError as error:
            raise StorageError(f"{self.name} cannot be used: {error.strerror or error}: {key!r}") from error


def _check_folder_path(path: str | os.PathLike[str]) -> Path:
    """The path of a folder, which need not be there yet; StorageError if there can be none."""
    try:
        text = os.fspath(path)
        if text and b"\0" not in os.fsencode(text):
            return Path(text).expanduser().absolute()
        reason = "a path has characters, none of them NUL; '.' is the current folder"
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error)
    raise StorageError(f"{path!r} is not the path of a folder: {reason}")
