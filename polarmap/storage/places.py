"""Where a store is, as workers are told."""

from __future__ import annotations

from polarmap.storage.base import Store
from polarmap.storage.folder import FolderStore
from polarmap.worker.parts import Place


def source_of(store: Store) -> Place:
    """What workers need to reach a store themselves; of kind "driver" if only this process can."""
    if isinstance(store, FolderStore):
        return Place("folder", str(store.root))
    if hasattr(store, "bucket") and hasattr(store, "backend"):
        return Place("bucket", store.bucket, store.backend)
    return Place("driver", store.name)
