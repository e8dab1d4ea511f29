"""Results that stay in storage: each task stores its own, and a sample of it is what travels.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import Packed, pack_leaves, unpacked

SAMPLE = 256  # numbers of a result that travel when it stays in storage

Write = Callable[[Place, str, Any, int], list[Part]]  # an object: where, key, bytes, and size of its parts


class OutputSpec(NamedTuple):
    """Where each task stores its result, of which only a sample then travels.

    source : a folder or bucket.
    prefix : of the keys; an array of a result is the object `prefix/task-attempt/number`.
    items : numbers in a part at most, so that results of different dtypes are cut alike; a part holds
        numbers of one array only.
    arrays : how many a result consists of.
    """

    source: Place
    prefix: str
    items: int
    arrays: int = 1

    def key(self, task: int, attempt: int, number: int) -> str:
        """Of an array that an attempt at a task has given."""
        return f"{self.prefix}/{task}-{attempt}/{number}"


class StoredOutput(NamedTuple):
    """A result that lies in storage.

    layout : dtype and shape of each of its arrays.
    parts : their bytes in a row.
    """

    layout: tuple[tuple[str, tuple[int, ...]], ...]
    parts: tuple[Part, ...]


def store_result(
    result: Packed, output: OutputSpec, task: int, attempt: int, write: Write
) -> tuple[Packed, tuple[Part, ...]]:
    """Store a result, each of its arrays as an object; its sample, and the parts, whose bytes in a row it is.

    The sample is a linear function of the result, the same one for every task: what is true of the
    results by linearity can be verified on it. Its structure tells that of the result.
    """
    _check_is_arrays(result, output.arrays)
    parts: list[Part] = []
    samples = []
    for number, array in enumerate(unpacked(result.layout, result.data, is_writable=False)):
        flat = array.reshape(-1)
        samples.append(sample(flat, max(1, SAMPLE // output.arrays)))
        key = output.key(task, attempt, number)
        parts += write(output.source, key, flat.view(np.uint8).data, output.items * flat.itemsize)
    shape = result.layout and result.layout[0][1]
    packed = pack_leaves(samples, ("sample", shape, result.structure))
    return packed, tuple(parts)


def sample(array: Any, count: int = SAMPLE) -> Any:
    """At most `count` numbers of an array, evenly spread.

    >>> sample(np.arange(100), 4).tolist()
    [0, 33, 66, 99]
    """
    flat = array.reshape(-1)
    return flat[np.linspace(0, max(0, flat.size - 1), min(flat.size, count)).astype(np.int64)]


def _check_is_arrays(result: Packed, count: int) -> None:
    """TypeError for a result that does not consist of so many plain arrays."""
    if len(result.layout) != count:
        raise TypeError(f"a result that stays in storage is one array; f returned {len(result.layout)}")
    if count == 1 and len(result.structure) > 1:
        kind = result.structure[0].__name__
        raise TypeError(f"a result that stays in storage is one array; f returned it in a {kind}")
    if count == 1 and result.structure == ("matrix",):
        raise TypeError("a result that stays in storage is one array: return it as a numpy.ndarray")
