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

from polarmap.arrays.manifest import MANIFESTS, Manifest, array_prefix, manifest_key
from polarmap.arrays.stores import PartStore
from polarmap.dtypes import Array
from polarmap.errors import MissingObjectError, StorageError
from polarmap.storage import Store
from polarmap.storage.folder import STALE_SECONDS, FolderStore
from polarmap.validation import is_real_number
from polarmap.worker.parts import Part
from polarmap.worker.processes import ProcessIdentity

RUN_NOTE = "running.json"
HEARTBEAT_SECONDS = 600.0  # between signs of life

_running: set[str] = set()  # prefixes of those of this process


class Generation:
    """The objects of one run that is under way; a context, which ends with a sweep.

    purpose : what the next run has to agree on to go on from here if this one fails; None: nobody goes on,
        as where checksums do not tell what a part was made of.
    """

    def __init__(self, parts: PartStore, name: str, purpose: Mapping[str, Any] | None = None) -> None:
        self.store, self._parts, self._name = parts.store, parts, name
        self._purpose = purpose if parts.has_checksums_of_data else None
        self.run = uuid.uuid4().hex[:12]
        self.prefix = f"{array_prefix(name)}{self.run}/"
        self._last_heartbeat = -HEARTBEAT_SECONDS

    def __enter__(self) -> Generation:
        _running.add(self.prefix)
        try:
            self.heartbeat()
        except BaseException:
            _running.discard(self.prefix)
            raise
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        _running.discard(self.prefix)
        if kind is None:
            sweep(self.store, self._name)
        elif self._purpose is None:
            with contextlib.suppress(Exception):  # a storage that is down must not hide why the run ended
                sweep(self.store, self._name)

    def heartbeat(self) -> None:
        """Renew, at most every few seconds, the object that says who runs this and what for."""
        if time.monotonic() - self._last_heartbeat < HEARTBEAT_SECONDS:
            return
        note = {"purpose": self._purpose, "owner": str(ProcessIdentity.current()), "time": time.time()}
        self.store.put(self.prefix + RUN_NOTE, json.dumps(note).encode())
        self._last_heartbeat = time.monotonic()

    def put(self, block: int, stripe: int, row: Array) -> Part:
        """Store a part from here."""
        return self._parts.put(f"{self.prefix}{stripe:06d}/{block:05d}", row)

    def record(self, stripe: int, parts: Sequence[Part]) -> None:
        """Note that all parts of a stripe are stored, for the run that may go on from here."""
        if self._purpose is not None:
            note = json.dumps([tuple(part) for part in parts])
            self.store.put(f"{self.prefix}{stripe:06d}.json", note.encode())
        self.heartbeat()

    def finished_stripes(self) -> dict[int, list[Part]]:
        """Stripes that runs for the same purpose had finished when they were cut short."""
        found: dict[int, list[Part]] = {}
        if self._purpose is None:
            return found
        wanted = json.loads(json.dumps(self._purpose))
        keys = self.store.keys(array_prefix(self._name))
        stored = set(keys)
        for prefix, owned in _by_generation(self._name, keys).items():
            note = _read_note(self.store, prefix)
            if note.get("purpose") != wanted or _is_running(prefix, note):
                continue
            for key in owned:
                number = key[len(prefix) :].removesuffix(".json")
                parts = _read_record(self.store, key) if number.isdecimal() else []
                if parts and stored.issuperset(part.key for part in parts):
                    found[int(number)] = parts
        return found

    def publish(self, made: Manifest, before: bytes | None) -> Manifest:
        """Put the manifest, unless it is no longer the one (or none) that was there at the beginning.

        One that could not be opened is refused: it would occupy the name.
        """
        made = replace(made, run=made.run or self.run, encryption=self._parts.place.encryption)
        store, name, data = self.store, made.name, made.dump()
        Manifest.parse(data, f"what was made for the coded array {name!r} is not published: its manifest")
        now = read_current(store, name)
        if now == before:
            store.put(manifest_key(name), data)
        store.delete([self.prefix + RUN_NOTE])
        if now != before:
            self._purpose = None
            raise StorageError(
                f"the coded array {name!r} in {store.name} was written or deleted by another process "
                "meanwhile: that stays, and what was made here is dropped"
            )
        return made


def load(store: Store, name: str, key: str | bytes | None = None) -> tuple[Manifest, bytes]:
    """The manifest of a coded array, and its bytes; verified if its key is given.

    MissingObjectError if there is none of that name; StorageError if it is damaged or of another version.
    """
    data = read_current(store, name)
    if data is None:
        there = ", ".join(map(repr, names(store)[:20])) or "none"
        lacks = isinstance(store, FolderStore) and not store.root.is_dir()
        place = f"{store.name}, which does not exist" if lacks else store.name
        raise MissingObjectError(f"there is no coded array {name!r} in {place}; there are: {there}")
    return parsed(store, name, data, key), data


def parsed(store: Store, name: str, data: bytes, key: str | bytes | None) -> Manifest:
    """What was read as the manifest of that name; StorageError if it is none."""
    where = f"the manifest {manifest_key(name)!r} in {store.name}"
    manifest = Manifest.parse(data, where, key)
    if manifest.name != name:
        raise StorageError(f"{where} is that of {manifest.name!r}")
    return manifest


def read_current(store: Store, name: str) -> bytes | None:
    """The manifest of that name as it is stored; None if there is none."""
    try:
        return store.get(manifest_key(name))
    except MissingObjectError:
        return None


def replaceable(store: Store, name: str, advice: str) -> bytes | None:
    """The manifest that is there now, if it may be replaced: then there is no advice what else to do."""
    data = read_current(store, name)
    if data is not None and advice:
        raise StorageError(
            f"there is a coded array {name!r} in {store.name} already: choose another name{advice}"
        )
    return data


def names(store: Store) -> list[str]:
    """The coded arrays in a store, sorted."""
    found = [key[len(MANIFESTS) :] for key in store.keys(MANIFESTS)]
    return sorted(name[: -len(".json")] for name in found if name.endswith(".json") and "/" not in name)


def sweep(store: Store, name: str) -> None:
    """Remove what belongs neither to the array nor to a run that may still be under way."""
    ended = []
    for generation, owned in _by_generation(name, store.keys(array_prefix(name))).items():
        note = _read_note(store, generation) if f"{generation}{RUN_NOTE}" in owned else {}
        if not _may_be_running(generation, note):
            ended += owned
    try:  # after the notes were read: a run that had taken its own away by then is in this manifest
        needed = load(store, name)[0].objects
    except MissingObjectError:
        needed = set()
    store.delete([key for key in ended if key not in needed])


def _by_generation(name: str, keys: Sequence[str]) -> dict[str, list[str]]:
    """Keys of an array by the prefix of their generation."""
    found: dict[str, list[str]] = {}
    for key in keys:
        generation = key[len(array_prefix(name)) :].partition("/")[0]
        found.setdefault(f"{array_prefix(name)}{generation}/", []).append(key)
    return found


def _read_note(store: Store, generation: str) -> dict[str, Any]:
    """Who runs a generation and what for, as far as anything says so."""
    note = _read(store, f"{generation}{RUN_NOTE}")
    return note if isinstance(note, dict) else {}


def _read_record(store: Store, key: str) -> list[Part]:
    """The parts of a finished stripe; none if nothing says so."""
    try:
        parts: list[Any] = [Part(*fields) for fields in _read(store, key)]
    except TypeError:
        return []
    is_record = all(isinstance(key, str) and {*map(type, sizes)} == {int} for key, *sizes in parts)
    return parts if is_record else []


def _read(store: Store, key: str) -> Any:
    """Read a small JSON object; None if it is not there or cut short."""
    try:
        return json.loads(store.get(key))
    except (MissingObjectError, ValueError, RecursionError):
        return None


def _is_running(generation: str, note: Mapping[str, Any]) -> bool:
    """Whether the run is known to be under way."""
    owner = ProcessIdentity.parse(str(note.get("owner")))
    if owner == ProcessIdentity.current():
        return generation in _running
    return owner.is_on_this_machine() and not owner.is_dead()


def _may_be_running(generation: str, note: Mapping[str, Any]) -> bool:
    """Whether the run may be under way, as far as can be seen from here."""
    if ProcessIdentity.parse(str(note.get("owner"))).is_on_this_machine():
        return _is_running(generation, note)
    told = note.get("time")
    return is_real_number(told) and time.time() - told < STALE_SECONDS
