"""Where a store is, as workers are told."""

from __future__ import annotations

from polarmap.remote.stored import Source
from polarmap.storage.base import Store
from polarmap.storage.folder import FolderStore


def source_of(store: Store) -> Source:
    """What workers need to reach a store themselves; of kind "driver" if only this process can."""
    if isinstance(store, FolderStore):
        return Source("folder", str(store.root))
    if hasattr(store, "bucket") and hasattr(store, "backend"):
        return Source("bucket", store.bucket, store.backend)
    return Source("driver", store.name)
