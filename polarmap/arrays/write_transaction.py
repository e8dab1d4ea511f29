"""Generations: the objects that one encode or repair writes, and what becomes of them.

Every run writes below a prefix of its own, never over an object of another; only the manifest, put
last and replaced whole, says which of them make up the array. A run that is cut short leaves its
generation behind, with a note of what it was doing and who did it: the next run of the same plan
takes its finished stripes, and whoever finishes removes what no longer belongs to anybody.
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
HEARTBEAT_INTERVAL = 600.0  # between signs of life

_active_prefixes: set[str] = set()  # prefixes of those of this process


class WriteTransaction:
    """The objects of one run that is under way; a context, which ends with a sweep.

    resume_key : what the next run has to agree on to go on from here if this one fails; None: nobody goes on,
        as where checksums do not tell what a part was made of.
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
            with contextlib.suppress(Exception):  # a storage that is down must not hide why the run ended
                collect_garbage(self.store, self._array_name)

    def write_heartbeat(self) -> None:
        """Renew, at most every few seconds, the object that says who runs this and what for."""
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
        """Store a part from here."""
        return self._segment_store.put(f"{self.prefix}{stripe_index:06d}/{block_index:05d}", values)

    def record_finished_stripe(self, stripe_index: int, segments: Sequence[Segment]) -> None:
        """Note that all parts of a stripe are stored, for the run that may go on from here."""
        if self._resume_key is not None:
            stripe_record = json.dumps([tuple(segment) for segment in segments])
            self.store.put(f"{self.prefix}{stripe_index:06d}.json", stripe_record.encode())
        self.write_heartbeat()

    def find_resumable_stripes(self) -> dict[int, list[Segment]]:
        """Stripes that runs for the same purpose had finished when they were cut short."""
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
        """Put the manifest, unless it is no longer the one (or none) that was there at the beginning.

        One that could not be opened is refused: it would occupy the name.
        """
        manifest = replace(
            manifest,
            transaction_id=manifest.transaction_id or self.transaction_id,
            encryption=self._segment_store.location.encryption,
        )
        store, array_name, manifest_bytes = self.store, manifest.name, manifest.to_bytes()
        Manifest.from_bytes(
            manifest_bytes, f"what was made for the coded array {array_name!r} is not published: its manifest"
        )
        current_bytes = read_manifest_bytes(store, array_name)
        if current_bytes == expected_manifest_bytes:
            store.put(get_manifest_key(array_name), manifest_bytes)
        store.delete([self.prefix + LOCK_FILE])
        if current_bytes != expected_manifest_bytes:
            self._resume_key = None
            raise StorageError(
                f"the coded array {array_name!r} in {store.name} was written or deleted by another process "
                "meanwhile: that stays, and what was made here is dropped"
            )
        return manifest


def load_manifest(store: Store, array_name: str, key: str | bytes | None = None) -> tuple[Manifest, bytes]:
    """The manifest of a coded array, and its bytes; verified if its key is given.

    MissingObjectError if there is none of that name; StorageError if it is damaged or of another version.
    """
    manifest_bytes = read_manifest_bytes(store, array_name)
    if manifest_bytes is None:
        existing_names = ", ".join(map(repr, list_array_names(store)[:20])) or "none"
        is_missing_folder = isinstance(store, FolderStore) and not store.root.is_dir()
        store_text = f"{store.name}, which does not exist" if is_missing_folder else store.name
        raise MissingObjectError(
            f"there is no coded array {array_name!r} in {store_text}; there are: {existing_names}"
        )
    return parse_manifest(store, array_name, manifest_bytes, key), manifest_bytes


def parse_manifest(store: Store, array_name: str, manifest_bytes: bytes, key: str | bytes | None) -> Manifest:
    """What was read as the manifest of that name; StorageError if it is none."""
    description = f"the manifest {get_manifest_key(array_name)!r} in {store.name}"
    manifest = Manifest.from_bytes(manifest_bytes, description, key)
    if manifest.name != array_name:
        raise StorageError(f"{description} is that of {manifest.name!r}")
    return manifest


def read_manifest_bytes(store: Store, array_name: str) -> bytes | None:
    """The manifest of that name as it is stored; None if there is none."""
    try:
        return store.get(get_manifest_key(array_name))
    except MissingObjectError:
        return None


def check_manifest_replaceable(store: Store, array_name: str, advice: str) -> bytes | None:
    """The manifest that is there now, if it may be replaced: then there is no advice what else to do."""
    manifest_bytes = read_manifest_bytes(store, array_name)
    if manifest_bytes is not None and advice:
        raise StorageError(
            f"there is a coded array {array_name!r} in {store.name} already: choose another name{advice}"
        )
    return manifest_bytes


def list_array_names(store: Store) -> list[str]:
    """The coded arrays in a store, sorted."""
    file_names = [key[len(MANIFEST_PREFIX) :] for key in store.keys(MANIFEST_PREFIX)]
    return sorted(name[: -len(".json")] for name in file_names if name.endswith(".json") and "/" not in name)


def collect_garbage(store: Store, array_name: str) -> None:
    """Remove what belongs neither to the array nor to a run that may still be under way."""
    inactive_keys, array_keys = [], store.keys(get_array_key_prefix(array_name))
    for prefix, owned_keys in _group_keys_by_transaction(array_name, array_keys).items():
        lock_record = _read_lock_record(store, prefix) if f"{prefix}{LOCK_FILE}" in owned_keys else {}
        if not _may_transaction_be_active(prefix, lock_record):
            inactive_keys += owned_keys
    try:  # after the notes were read: a run that had taken its own away by then is in this manifest
        live_keys = load_manifest(store, array_name)[0].object_keys
    except MissingObjectError:
        live_keys = set()
    store.delete([key for key in inactive_keys if key not in live_keys])


def _group_keys_by_transaction(array_name: str, keys: Sequence[str]) -> dict[str, list[str]]:
    """Keys of an array by the prefix of their generation."""
    keys_by_prefix: dict[str, list[str]] = {}
    for key in keys:
        transaction_id = key[len(get_array_key_prefix(array_name)) :].partition("/")[0]
        keys_by_prefix.setdefault(f"{get_array_key_prefix(array_name)}{transaction_id}/", []).append(key)
    return keys_by_prefix


def _read_lock_record(store: Store, prefix: str) -> dict[str, Any]:
    """Who runs a generation and what for, as far as anything says so."""
    lock_record = _read_json(store, f"{prefix}{LOCK_FILE}")
    return lock_record if isinstance(lock_record, dict) else {}


def _read_stripe_record(store: Store, key: str) -> list[Segment]:
    """The parts of a finished stripe; none if nothing says so."""
    try:
        segments: list[Any] = [Segment(*fields) for fields in _read_json(store, key)]
    except TypeError:
        return []
    is_record = all(isinstance(key, str) and {*map(type, sizes)} == {int} for key, *sizes in segments)
    return segments if is_record else []


def _read_json(store: Store, key: str) -> Any:
    """Read a small JSON object; None if it is not there or cut short."""
    try:
        return json.loads(store.get(key))
    except (MissingObjectError, ValueError, RecursionError):
        return None


def _is_transaction_active(prefix: str, lock_record: Mapping[str, Any]) -> bool:
    """Whether the run is known to be under way."""
    owner = ProcessIdentity.parse(str(lock_record.get("owner")))
    if owner == ProcessIdentity.current():
        return prefix in _active_prefixes
    return owner.is_on_this_machine() and not owner.is_dead()


def _may_transaction_be_active(prefix: str, lock_record: Mapping[str, Any]) -> bool:
    """Whether the run may be under way, as far as can be seen from here."""
    if ProcessIdentity.parse(str(lock_record.get("owner"))).is_on_this_machine():
        return _is_transaction_active(prefix, lock_record)
    heartbeat_at = lock_record.get("time")
    return is_real_number(heartbeat_at) and time.time() - heartbeat_at < STALE_WRITER_SECONDS
