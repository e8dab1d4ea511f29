"""Stripes become an array that can be opened: the manifest is written last of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from polarmap.arrays import generations
from polarmap.arrays.generations import Generation
from polarmap.arrays.keys import array_prefix
from polarmap.arrays.manifest import Manifest, describe_code, read_current
from polarmap.arrays.stores import PartStore
from polarmap.arrays.stripes import StripePlan
from polarmap.arrays.zarr_chunks import as_zarr
from polarmap.errors import StorageError
from polarmap.storage import Store
from polarmap.worker.parts import Part

# Generation, finished stripes of earlier runs -> the n parts of each stripe, once they are stored.
StripeWriter = Callable[[Generation, dict[int, list[Part]]], list[list[Part]]]


def write_array(
    part_store: PartStore, name: str, plan: StripePlan, overwrite: bool, write: StripeWriter
) -> Manifest:
    """Have the n coded blocks of a source stored and, last of all, their manifest."""
    store, encryption = part_store.store, part_store.encryption
    before = replaceable(store, name, "" if overwrite else ", or pass overwrite=True")
    purpose = _purpose(plan)
    if encryption is not None:  # no earlier run has its salt: parts tell nothing of what they were made of
        purpose["salt"] = encryption.salt.hex()
    if hasattr(store, "sweep"):
        store.sweep()
    earlier = generations.finished_stripes(store, name, purpose)
    with Generation(store, name, purpose, keeps=True) as generation:
        columns = write(generation, earlier)
        parts = tuple(tuple(column[block] for column in columns) for block in range(plan.code.n))
        made = Manifest(name, plan.shape, plan.dtype, plan.code, parts, encryption=encryption)
        if plan.chunk_shape is not None:
            made = as_zarr(store, made, generation.prefix, plan.chunk_shape)
            if not made.is_zarr and not plan.stripes_are_chunks:  # a block is too large to be held
                made = replace(made, zarr=None)
        if earlier:
            _check_still_there(store, made)
        generation.publish(made, before)
    return made


def replaceable(store: Store, name: str, advice: str) -> bytes | None:
    """The manifest that is there now, if it may be replaced: then there is no advice what else to do."""
    data = read_current(store, name)
    if data is not None and advice:
        raise StorageError(
            f"there is a coded array {name!r} in {store.name} already: choose another name{advice}"
        )
    return data


def _purpose(plan: StripePlan) -> dict[str, Any]:
    """What two runs must agree on for one to go on where the other stopped."""
    return {
        "shape": list(plan.shape),
        "dtype": plan.dtype.str,
        "code": describe_code(plan.code),
        "stripes": [len(plan.hyperslabs), plan.widest_stripe],
        "chunk": plan.chunk_shape and list(plan.chunk_shape),
    }


def _check_still_there(store: Store, made: Manifest) -> None:
    """Parts kept from earlier runs may have been swept by another process."""
    folder = array_prefix(made.name)
    gone = {key for key in made.objects if key.startswith(folder)} - set(store.keys(folder))
    if gone:
        raise StorageError(
            f"{len(gone)} parts of {made.name!r} in {store.name} were removed by another process "
            "meanwhile; encode again"
        )
