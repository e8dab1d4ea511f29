"""Write transactions: an array is encoded or repaired completely, or not at all.

    with WriteTransaction(...) as transaction:
        transaction.store_segment(...)          # writes below a new key prefix
        transaction.commit(manifest, expected)  # makes all written objects visible at the same time

A transaction never overwrites objects of another one. Only the manifest says which objects belong to the
array. It is written last, and replaced as a whole. If a transaction is interrupted, its objects stay in
storage, together with a lock record that names its process and its purpose. The next transaction with the
same purpose reuses the finished stripes. Each transaction that succeeds deletes objects that belong neither
to the array nor to an active transaction.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from polarmap.arrays.manifest import MANIFEST_PREFIX, Manifest, get_array_key_prefix, get_manifest_key
from polarmap.arrays.stores import SegmentStore
from polarmap.dtypes import Array
from polarmap.errors import MissingObjectError, StorageError
from polarmap.storage import Store
from polarmap.storage.folder import STALE_WRITER_SECONDS, FolderStore
from polarmap.validation import is_real_number
from polarmap.worker.processes import ProcessIdentity
from polarmap.worker.segments import Segment

LOCK_FILE = "running.json"
HEARTBEAT_INTERVAL = 600.0  # seconds between updates of a lock record

_active_prefixes: set[str] = set()  # key prefixes of this process's active transactions


class WriteTransaction:
    """A context manager that writes the objects of a coded array and makes them visible atomically.

    A successful transaction ends by deleting objects that are no longer used.

    Parameters
    ----------
    segment_store : SegmentStore
        The store for the blocks of the array.
    array_name : str
        The name of the array.
    resume_key : mapping, optional
        A description of what the transaction does, as JSON data. If the transaction is interrupted, a later
        one with an equal `resume_key` can reuse what it has written. None if that is not possible. Encrypted
        arrays are never resumed, because their checksums do not show whether the data is the same.

    Attributes
    ----------
    transaction_id : str
        The random id of the transaction.
    prefix : str
        The common key prefix of all objects of the transaction.
    """

    def __init__(
        self, segment_store: SegmentStore, array_name: str, resume_key: Mapping[str, Any] | None = None
    ) -> None:
        self.store, self._segment_store, self._array_name = segment_store.store, segment_store, array_name
        self._resume_key = resume_key if segment_store.has_plaintext_checksums else None
        self.transaction_id = uuid.uuid4().hex[:12]
        self.prefix = f"{get_array_key_prefix(array_name)}{self.transaction_id}/"
        self._last_heartbeat_at = -HEARTBEAT_INTERVAL

    def __enter__(self) -> WriteTransaction:
        _active_prefixes.add(self.prefix)
        try:
            self.write_heartbeat()
        except BaseException:
            _active_prefixes.discard(self.prefix)
            raise
        return self

    def __exit__(self, error_type: object, *error_details: object) -> None:
        _active_prefixes.discard(self.prefix)
        if error_type is None:
            collect_garbage(self.store, self._array_name)
        elif self._resume_key is None:
            # Ignore errors of this cleanup, so that the caller gets the original exception.
            with contextlib.suppress(Exception):
                collect_garbage(self.store, self._array_name)

    def write_heartbeat(self) -> None:
        """Write a heartbeat (the current time) to the lock record.

        It shows other processes that this transaction is active. Calls within HEARTBEAT_INTERVAL seconds of
        the last update do nothing.
        """
        if time.monotonic() - self._last_heartbeat_at < HEARTBEAT_INTERVAL:
            return
        lock_record = {
            "purpose": self._resume_key,
            "owner": str(ProcessIdentity.current()),
            "time": time.time(),
        }
        self.store.put(self.prefix + LOCK_FILE, json.dumps(lock_record).encode())
        self._last_heartbeat_at = time.monotonic()

    def store_segment(self, block_index: int, stripe_index: int, values: Array) -> Segment:
        """Store one stripe (slice) of a block as a new object, and return the segment that refers to it."""
        return self._segment_store.put(f"{self.prefix}{stripe_index:06d}/{block_index:05d}", values)

    def record_finished_stripe(self, stripe_index: int, segments: Sequence[Segment]) -> None:
        """Record that a stripe (slice of all blocks) is stored, so that a later transaction can reuse it."""
        if self._resume_key is not None:
            stripe_record = json.dumps([tuple(segment) for segment in segments])
            self.store.put(f"{self.prefix}{stripe_index:06d}.json", stripe_record.encode())
        self.write_heartbeat()

    def find_resumable_stripes(self) -> dict[int, list[Segment]]:
        """Find the stripes (slices of all blocks) that interrupted transactions have already stored.

        Only transactions with the same resume key are considered. Returns a dict from stripe index to the
        stored segments (byte ranges of objects) of the stripe, one segment per block.
        """
        segments_by_stripe: dict[int, list[Segment]] = {}
        if self._resume_key is None:
            return segments_by_stripe
        resume_key = json.loads(json.dumps(self._resume_key))
        keys = self.store.keys(get_array_key_prefix(self._array_name))
        stored_keys = set(keys)
        for prefix, owned_keys in _group_keys_by_transaction(self._array_name, keys).items():
            lock_record = _read_lock_record(self.store, prefix)
            if lock_record.get("purpose") != resume_key or _is_transaction_active(prefix, lock_record):
                continue
            for key in owned_keys:
                stripe_text = key[len(prefix) :].removesuffix(".json")
                segments = _read_stripe_record(self.store, key) if stripe_text.isdecimal() else []
                if segments and stored_keys.issuperset(segment.key for segment in segments):
                    segments_by_stripe[int(stripe_text)] = segments
        return segments_by_stripe

    def commit(self, manifest: Manifest, expected_manifest_bytes: bytes | None) -> Manifest:
        """Make the written objects the current version of the array by replacing its manifest.

        Parameters
        ----------
        manifest : Manifest
            The new manifest. It is validated before it is stored.
        expected_manifest_bytes : bytes or None
            The manifest at the start of the transaction. None if the array did not exist.

        Returns
        -------
        Manifest
            The manifest as stored, with the transaction id and the encryption.

        Raises
        ------
        StorageError
            If the manifest is invalid, or if another process has replaced or deleted the array since the
            transaction began. In that case, the array is not changed.
        """
        manifest = replace(
            manifest,
            transaction_id=manifest.transaction_id or self.transaction_id,
            encryption=self._segment_store.location.encryption,
        )
        store, array_name, manifest_bytes = self.store, manifest.name, manifest.to_bytes()
        Manifest.from_bytes(
            manifest_bytes, f"the coded array {array_name!r} is not published, because its new manifest"
        )
        current_bytes = read_manifest_bytes(store, array_name)
        if current_bytes == expected_manifest_bytes:
            store.put(get_manifest_key(array_name), manifest_bytes)
        store.delete([self.prefix + LOCK_FILE])
        if current_bytes != expected_manifest_bytes:
            self._resume_key = None
            raise StorageError(
                f"another process has written or deleted the coded array {array_name!r} in {store.name} "
                "meanwhile. Its change is kept, and the array of this process is discarded"
            )
        return manifest


def load_manifest(store: Store, array_name: str, key: str | bytes | None = None) -> tuple[Manifest, bytes]:
    """Read a coded array's manifest (its description), and return it together with its bytes.

    If `key` is given, the manifest is verified to have been written with it. Raises MissingObjectError if the
    array does not exist, and StorageError if the manifest is damaged or has an unknown version.
    """
    manifest_bytes = read_manifest_bytes(store, array_name)
    if manifest_bytes is None:
        existing_names = ", ".join(map(repr, list_array_names(store)[:20])) or "none"
        is_missing_folder = isinstance(store, FolderStore) and not store.root.is_dir()
        store_text = f"{store.name}, which does not exist" if is_missing_folder else store.name
        raise MissingObjectError(
            f"the coded array {array_name!r} does not exist in {store_text}; existing arrays: "
            f"{existing_names}"
        )
    return parse_manifest(store, array_name, manifest_bytes, key), manifest_bytes


def parse_manifest(store: Store, array_name: str, manifest_bytes: bytes, key: str | bytes | None) -> Manifest:
    """Parse an array's manifest. Raises StorageError if it is invalid or describes another array."""
    description = f"the manifest {get_manifest_key(array_name)!r} in {store.name}"
    manifest = Manifest.from_bytes(manifest_bytes, description, key)
    if manifest.name != array_name:
        raise StorageError(f"{description} describes the coded array {manifest.name!r}")
    return manifest


def read_manifest_bytes(store: Store, array_name: str) -> bytes | None:
    """Read an array's manifest without parsing it. Return None if the array does not exist."""
    try:
        return store.get(get_manifest_key(array_name))
    except MissingObjectError:
        return None


def check_manifest_replaceable(store: Store, array_name: str, advice: str) -> bytes | None:
    """Check that an array may be stored under a name, and return the manifest that it would replace.

    Returns None if no array has this name. If an existing array must not be replaced, pass a nonempty
    `advice`. Then a StorageError is raised, whose message ends with this text.
    """
    manifest_bytes = read_manifest_bytes(store, array_name)
    if manifest_bytes is not None and advice:
        raise StorageError(
            f"the coded array {array_name!r} already exists in {store.name}: choose another name{advice}"
        )
    return manifest_bytes


def list_array_names(store: Store) -> list[str]:
    """List the names of all coded arrays in a store, in alphabetical order."""
    file_names = [key[len(MANIFEST_PREFIX) :] for key in store.keys(MANIFEST_PREFIX)]
    return sorted(name[: -len(".json")] for name in file_names if name.endswith(".json") and "/" not in name)


def collect_garbage(store: Store, array_name: str) -> None:
    """Delete stored objects of an array that are no longer used.

    Objects are kept if they belong to the array's current version, or if the transaction that wrote them may
    still be active.
    """
    inactive_keys, array_keys = [], store.keys(get_array_key_prefix(array_name))
    for prefix, owned_keys in _group_keys_by_transaction(array_name, array_keys).items():
        lock_record = _read_lock_record(store, prefix) if f"{prefix}{LOCK_FILE}" in owned_keys else {}
        if not _may_transaction_be_active(prefix, lock_record):
            inactive_keys += owned_keys
    # Read the manifest after the lock records, not before. Otherwise, a transaction could commit in between,
    # and its objects would be deleted, because the old manifest does not list them.
    try:
        live_keys = load_manifest(store, array_name)[0].object_keys
    except MissingObjectError:
        live_keys = set()
    store.delete([key for key in inactive_keys if key not in live_keys])


def _group_keys_by_transaction(array_name: str, keys: Sequence[str]) -> dict[str, list[str]]:
    """Group the keys of stored objects by the prefix of the transaction that wrote them."""
    keys_by_prefix: dict[str, list[str]] = {}
    for key in keys:
        transaction_id = key[len(get_array_key_prefix(array_name)) :].partition("/")[0]
        keys_by_prefix.setdefault(f"{get_array_key_prefix(array_name)}{transaction_id}/", []).append(key)
    return keys_by_prefix


def _read_lock_record(store: Store, prefix: str) -> dict[str, Any]:
    """Read a transaction's lock record, which shows whether it is active.

    Return an empty dict if the record is missing or invalid.
    """
    lock_record = _read_json(store, f"{prefix}{LOCK_FILE}")
    return lock_record if isinstance(lock_record, dict) else {}


def _read_stripe_record(store: Store, key: str) -> list[Segment]:
    """Read the record of a finished stripe, and return where it is stored, as one segment per block.

    Return an empty list if the record is missing or invalid.
    """
    try:
        segments: list[Any] = [Segment(*fields) for fields in _read_json(store, key)]
    except TypeError:
        return []
    is_record = all(isinstance(key, str) and {*map(type, sizes)} == {int} for key, *sizes in segments)
    return segments if is_record else []


def _read_json(store: Store, key: str) -> Any:
    """Read a JSON document from the store. Return None if it is missing or invalid."""
    try:
        return json.loads(store.get(key))
    except (MissingObjectError, ValueError, RecursionError):
        return None


def _is_transaction_active(prefix: str, lock_record: Mapping[str, Any]) -> bool:
    """Return whether a transaction is certainly active: its process is still running on this machine."""
    owner = ProcessIdentity.parse(str(lock_record.get("owner")))
    if owner == ProcessIdentity.current():
        return prefix in _active_prefixes
    return owner.is_on_this_machine() and not owner.is_dead()


def _may_transaction_be_active(prefix: str, lock_record: Mapping[str, Any]) -> bool:
    """Return whether a transaction may be active, so that its objects must not be deleted.

    If its process runs on another machine, the transaction may be active unless its last heartbeat is too
    old.
    """
    if ProcessIdentity.parse(str(lock_record.get("owner"))).is_on_this_machine():
        return _is_transaction_active(prefix, lock_record)
    heartbeat_at = lock_record.get("time")
    return is_real_number(heartbeat_at) and time.time() - heartbeat_at < STALE_WRITER_SECONDS
