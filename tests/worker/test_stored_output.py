"""Results that stay in storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polarmap.worker.encryption import put_parts
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import pack, unpacked
from polarmap.worker.stored_output import SAMPLE, OutputSpec, sample, store_result

OUTPUT = OutputSpec(Place("folder", "f"), "p", items=300)


def stored(result: Any, output: OutputSpec = OUTPUT) -> tuple[Any, tuple[Part, ...], dict[str, bytes]]:
    objects: dict[str, bytes] = {}

    def write(place: Place, key: str, data: Any, size: int) -> list[Part]:
        return put_parts(place, key, data, size, objects.__setitem__)

    packed, parts = store_result(pack(result), output, 3, 1, write)
    return packed, parts, objects


def test_a_result_is_cut_into_parts_and_a_sample_travels() -> None:
    result = np.arange(1000.0).reshape(10, 100)
    packed, parts, objects = stored(result)
    assert [(part.key, part.offset) for part in parts] == [
        ("p/3-1/0", 8 * start) for start in (0, 300, 600, 900)
    ]
    assert {key: bytes(data) for key, data in objects.items()} == {"p/3-1/0": result.tobytes()}
    pieces = [objects[part.key][part.offset : part.offset + part.size] for part in parts]
    assert b"".join(pieces) == result.tobytes()
    assert packed.structure == ("sample", (10, 100), ("array",))
    np.testing.assert_array_equal(unpacked(*packed[1:])[0], sample(result))
    assert unpacked(*packed[1:])[0].size == SAMPLE


def test_several_arrays_share_the_sample_and_no_part() -> None:
    _, parts, objects = stored([np.zeros(3), np.zeros(400, "i4")], OUTPUT._replace(arrays=2))
    assert [part.size for part in parts] == [24, 1200, 400]
    assert {key: len(data) for key, data in objects.items()} == {"p/3-1/0": 24, "p/3-1/1": 1600}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((np.zeros(2), np.zeros(2)), "f returned 2"),
        ([np.zeros(2)], "f returned it in a list"),
        (np.zeros((1, 1)).view(np.matrix), "return it as a numpy.ndarray"),
    ],
)
def test_what_is_not_one_array_is_refused(result: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        stored(result)
