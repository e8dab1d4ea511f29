"""Where workers can read a slab of the source themselves."""

from __future__ import annotations

import mmap
from math import prod

import numpy as np

from polarmap.arrays.sources import ArraySource, Source
from polarmap.arrays.stores import place_of
from polarmap.arrays.stripes import Hyperslab, element_count
from polarmap.errors import CodeError
from polarmap.storage import Store
from polarmap.worker.parts import Part, Place


class ReadableParts:
    """The parts, as workers read them, of the hyperslabs of a source.

    Attributes
    ----------
    source : what is read.
    place : where the parts lie.
    is_stored : whether that is the store, so that data blocks need no copy.
    """

    def __init__(self, source: Source, store: Store) -> None:
        self.source, self._file = source, mapped_file(source)
        self.is_stored = self._file is None
        self.place = place_of(store) if self._file is None else Place("folder", "/")

    def parts(self, first: int, slab: Hyperslab) -> tuple[Part, ...]:
        """The slab whose row 0 is row `first` of the whole; CodeError if only the driver can read it."""
        size = element_count(slab) * self.source.dtype.itemsize
        if self._file is None:
            part = self.source.locate(first, slab)
            if part is None:
                raise CodeError(
                    "with executor=, the data has to lie where workers can read it themselves: a .npy file "
                    "or memory map on this machine, or objects in the storage of which each block is a whole "
                    "number, without padding rows; leave executor out to send it through the driver"
                )
            return (part._replace(crc32=None),)
        path, offset = self._file
        row = prod(self.source.shape[1:]) * self.source.dtype.itemsize
        start = (first + slab[0].start) * row + _inner(slab, self.source.shape) * self.source.dtype.itemsize
        there = max(0, min(size, self.source.shape[0] * row - start))
        parts = (Part(path, there, None, offset + start), Part("", size - there))
        return tuple(part for part in parts if part.size)


def mapped_file(source: Source) -> tuple[str, int] | None:
    """Path below the root and offset of an array that is a contiguous piece of a file; None if not."""
    array = source.array if isinstance(source, ArraySource) else None
    mapped = getattr(array, "_mmap", None)
    if not isinstance(array, np.memmap) or not isinstance(mapped, mmap.mmap) or array.filename is None:
        return None
    if not array.flags.c_contiguous or array.dtype != source.dtype or array.mode == "c":
        return None
    begin = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    address = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    offset = begin + array.__array_interface__["data"][0] - address
    return str(array.filename).lstrip("/"), offset


def _inner(slab: Hyperslab, shape: tuple[int, ...]) -> int:
    """Elements of a row before the slab."""
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return sum(one.start * stride for one, stride in zip(slab[1:], strides[1:], strict=True))
