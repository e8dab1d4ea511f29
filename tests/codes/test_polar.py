"""Tests of properties that polar codes of all kernels share: decoding, options, errors and copies."""

from __future__ import annotations

import copy
import pickle

import code_oracles as oracles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polar_codes import by_size, rotation, shapes, sizes

from polarmap.codes.arikan_code import ArikanCode
from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.polar import PolarCode
from polarmap.codes.rotation_code import RotationCode
from polarmap.errors import CodeError

FLOATS = ["f2", "f4", "f8", "c8", "c16"]

TOLERANCE = {"f2": 0.2, "f4": 1e-3, "f8": 1e-10, "c8": 1e-3, "c16": 1e-10}


@settings(max_examples=60)
@given(sizes, shapes, st.sampled_from(FLOATS), st.sampled_from(["rotation", "arikan"]), st.data())
def test_floats_of_any_shape_are_decoded(size, shape, dtype, kernel, draw) -> None:
    code = PolarCode(*size, kernel, seed=0)
    stream = np.random.default_rng(draw.draw(st.integers(0, 999)))
    data = (stream.standard_normal((code.k, *shape)) * (1 + 1j if dtype[0] == "c" else 1)).astype(dtype)
    coded = code.encode(data)
    assert coded.dtype == dtype
    assert coded.shape == (code.n, *shape)
    assert coded[: code.k].tobytes() == data.tobytes()
    expected = np.tensordot(code.encoding_matrix, data.astype("c16"), 1)
    bound = TOLERANCE[dtype] * (1 + np.abs(expected).max(initial=0))
    np.testing.assert_allclose(coded[code.k :], expected, atol=bound, rtol=0)


@settings(max_examples=60)
@given(sizes, shapes, st.sampled_from(["f4", "f8", "c8", "c16"]), st.data())
def test_lost_floats_are_decoded(size, shape, dtype, draw) -> None:
    code = PolarCode(*size, seed=0)
    lost = draw.draw(st.sets(st.integers(0, code.n - 1), max_size=max(1, (code.n - code.k) // 2)))
    data = np.random.default_rng(len(lost)).standard_normal((code.k, *shape)).astype(dtype)
    coded = code.encode(data)
    decoded = code.decode({i: coded[i] for i in range(code.n) if i not in lost})
    assert decoded.dtype == dtype
    assert decoded.shape == data.shape
    np.testing.assert_allclose(decoded, data, atol=10 * TOLERANCE[dtype])
    kept = [i for i in range(code.k) if i not in lost]
    assert decoded[kept].tobytes() == data[kept].tobytes()


@pytest.mark.parametrize("kernel", ["rotation", "arikan"])
def test_affine_functions_decode(kernel: str) -> None:
    code, stream = PolarCode(20, 14, kernel), np.random.default_rng(0)
    weights, data = stream.standard_normal((6, 3)), stream.standard_normal((14, 5, 6))
    results = code.encode(data) @ weights + 1000.0
    decoded = code.decode({i: results[i] for i in range(20) if i not in (0, 3)})
    np.testing.assert_allclose(decoded, data @ weights + 1000.0, atol=1e-8)


@pytest.mark.parametrize("kernel", ["rotation", "arikan"])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (10, 1), (10, 9), (33, 32), (100, 70), (1000, 990)])
def test_unusual_sizes(n: int, k: int, kernel: str) -> None:
    code = PolarCode(n, k, kernel)
    data = np.random.default_rng(0).standard_normal((k, 2))
    coded = code.encode(data)
    np.testing.assert_allclose(code.parity_check_matrix @ coded, 0, atol=1e-10)
    np.testing.assert_allclose(code.decode({i: coded[i] for i in range(n) if i != k - 1}), data, atol=1e-8)


@pytest.mark.parametrize("kernel", ["rotation", "arikan"])
def test_ten_thousand_workers(kernel: str) -> None:
    code = PolarCode(10_000, 9_900, kernel)
    data = np.random.default_rng(0).standard_normal((9_900, 3))
    coded = code.encode(data)
    lost = set(np.random.default_rng(1).permutation(10_000)[:20].tolist())
    decoded = code.decode({i: coded[i] for i in range(10_000) if i not in lost})
    np.testing.assert_allclose(decoded, data, atol=1e-7)


def test_coefficients_never_change() -> None:
    # Workers and a driver of different versions must agree on the code.
    assert PolarCode(6, 4, "arikan").encoding_matrix.tolist() == ARIKAN_6_4
    np.testing.assert_allclose(PolarCode(6, 4, seed=0).encoding_matrix, ROTATION_6_4, atol=1e-12)
    sums = PolarCode(200, 120, "arikan").encoding_matrix @ np.arange(120) ** 2
    assert sums[::16].tolist() == [619, 3725, 1169, 1300, 121]
    sums = PolarCode(200, 120, "arikan", erasure=0.1).encoding_matrix @ np.arange(120) ** 2
    assert sums[::16].tolist() == [-9267, 178, 3, 808, 631]
    coefficients = PolarCode(200, 120).encoding_matrix[::40, ::60]
    expected = [[0.042295973913, 0.058515074447], [-0.029640777922, 0.068773185703]]
    np.testing.assert_allclose(coefficients, expected, atol=1e-11)


@pytest.mark.parametrize(("n", "k"), [(4, 4), (4, 0), (4, -1), (1, 1), (0, 0), (1 << 17, 5)])
def test_refuses_sizes(n: int, k: int) -> None:
    with pytest.raises(CodeError, match=f"not n = {n}, k = {k}"):
        PolarCode(n, k)


unequal = sizes.flatmap(
    lambda size: st.tuples(st.just(size), st.lists(st.floats(0, 1), min_size=size[0], max_size=size[0]))
)

designs = st.sampled_from(
    [("rotation", "optimal"), ("arikan", "optimal"), ("arikan", "sequential"), ("hadamard", "optimal")]
)


@settings(max_examples=60)
@given(unequal, designs)
def test_codes_for_unequal_workers_decode(sized: tuple, design: tuple[str, str]) -> None:
    (n, k), erasure = sized
    code = PolarCode(n, k, *design, erasure=erasure, seed=0)
    assert sorted(code.worker_indices.tolist()) == list(range(n))
    assert len(code.frozen_set) == n - k
    assert abs(code.parity_check_matrix.sum(axis=1)).max() < 1e-9
    coded = code.encode(np.arange(2.0 * k).reshape(k, 2))
    np.testing.assert_allclose(code.parity_check_matrix @ coded, 0, atol=1e-6)
    lost = code.worker_indices.tolist().index(int(np.argmax(erasure)))
    arrived = {i: coded[i] for i in range(n) if i != lost}
    if code.is_decodable(np.arange(n) != lost):
        np.testing.assert_allclose(code.decode(arrived), coded[:k], atol=1e-6)


@settings(max_examples=30)
@given(unequal, designs)
def test_with_block_order_every_block_belongs_to_its_worker(sized: tuple, design: tuple) -> None:
    (n, k), erasure = sized
    code = PolarCode(n, k, *design, erasure=erasure, seed=0)
    again = PolarCode(n, k, *design, erasure=np.array(erasure)[code.worker_indices], seed=0)
    assert again.worker_indices.tolist() == list(range(n))
    assert again.codeword_positions.tolist() == code.codeword_positions.tolist()


@pytest.mark.parametrize(
    ("kernel", "decoder"),
    [("arikan", "sequential"), ("arikan", "optimal"), ("rotation", "optimal"), ("hadamard", "optimal")],
)
@pytest.mark.parametrize(("n", "k"), [(2, 1), (23, 17), (64, 48), (100, 30)])
def test_equal_workers_have_the_code_of_a_single_probability(
    n: int, k: int, kernel: str, decoder: str
) -> None:
    shared, separate = (PolarCode(n, k, kernel, decoder, erasure) for erasure in (0.2, [0.2] * n))
    assert separate.worker_indices.tolist() == shared.worker_indices.tolist() == list(range(n))
    assert separate.frozen_set.tolist() == shared.frozen_set.tolist()
    assert separate.codeword_positions.tolist() == shared.codeword_positions.tolist()
    assert (separate.encoding_matrix == shared.encoding_matrix).all()


@pytest.mark.parametrize("value", [4.0, "4", True, None])
def test_refuses_sizes_that_are_not_integers(value: object) -> None:
    with pytest.raises(CodeError, match=f"k must be an integer, not {value!r}"):
        PolarCode(8, value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "reed"}, "kernel must be one of .* not 'reed'"),
        ({"decoder": "best"}, "decoder must be .* not 'best'"),
        ({"decoder": "sequential"}, "needs kernel='arikan'"),
        ({"erasure": 1.0}, "erasure must be strictly between 0 and 1, not 1.0"),
        (
            {"erasure": [0.1] * 7},
            "erasure must have one probability for each of the n = 8 workers, not 7",
        ),
        ({"erasure": [0.1] * 6 + [1.5, -1]}, r"erasure\[6\] must be between 0 and 1, not 1.5"),
        ({"erasure": [0.1, np.nan] * 4}, r"erasure\[1\] must be between 0 and 1, not nan"),
        ({"erasure": ["a"] * 8}, "a list with one number for each of the n = 8 workers, not "),
        ({"erasure": [[0.1], [0.1, 0.2]]}, "a list with one number for each of the n = 8 workers, not "),
        ({"erasure": [[0.1] * 8]}, "a list with one number for each of the n = 8 workers, not "),
        ({"levels": 2}, "levels=2 needs kernel='arikan'"),
        ({"levels": 0, "kernel": "arikan"}, "levels must be an integer from 1 to 3 for n = 8, not 0"),
        ({"levels": 4, "kernel": "arikan"}, "levels must be an integer from 1 to 3 for n = 8, not 4"),
        ({"levels": 2.5, "kernel": "arikan"}, "levels must be an integer from 1 to 3 for n = 8, not 2.5"),
        ({"erasure": "half"}, "a list with one number for each of the n = 8 workers, not 'half'"),
    ],
)
def test_refuses_options(options: dict, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        PolarCode(8, 4, **options)


@pytest.mark.parametrize("dtype", [bool, object, "U3", "S3", "M8[s]", "m8[s]", "V4", np.longdouble])
@pytest.mark.parametrize("kernel", ["rotation", "arikan"])
def test_refuses_dtypes_by_name(dtype: object, kernel: str) -> None:
    code, data = PolarCode(6, 4, kernel), np.zeros((4, 2), dtype)
    message = f"dtype {data.dtype}".replace("[", r"\[").replace("|", r"\|")
    with pytest.raises(CodeError, match=message):
        code.encode(data)
    with pytest.raises(CodeError, match=message):
        code.encode_parity(data)
    with pytest.raises(CodeError, match=message):
        code.decode(dict(enumerate(data)))


def test_refuses_shapes() -> None:
    code = PolarCode(6, 4)
    for shape in [(3, 2), (5, 2), ()]:
        with pytest.raises(CodeError, match="encodes"):
            code.encode(np.zeros(shape))
    with pytest.raises(CodeError, match="encodes 4 blocks, not 3"):
        code.encode_parity(np.zeros((3, 2)))
    with pytest.raises(CodeError, match=r"block 2 is float64 of shape \(1,\)"):
        code.encode_parity([np.zeros(2), np.zeros(2), np.zeros(1), np.zeros(2)])
    with pytest.raises(CodeError, match="block 3 is float32"):
        code.encode_parity([np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2, "f4")])


def test_parity_is_written_to_the_given_output() -> None:
    code, data = PolarCode(6, 4), np.arange(8.0).reshape(4, 2)
    out = np.empty((2, 2))
    assert code.encode_parity(data, out=out) is out
    assert out.tolist() == code.encode_parity(data).tolist()
    for wrong in (np.empty((2, 3)), np.empty((2, 2), "f4"), np.empty((2, 4))[:, ::2]):
        with pytest.raises(CodeError, match=r"out must be a contiguous float64 array of shape \(2, 2\)"):
            code.encode_parity(data, out=wrong)


def test_is_decodable_refuses_invalid_masks() -> None:
    for arrived in ([True] * 5, [1] * 6, [[True] * 6]):
        with pytest.raises(CodeError, match="boolean mask of length 6"):
            PolarCode(6, 4).is_decodable(arrived)


@pytest.mark.parametrize("kernel", ["rotation", "arikan"])
def test_a_resized_code_has_the_same_options(kernel: str) -> None:
    given = {"kernel": kernel, "seed": 3, "erasure": 0.2}
    actual, expected = PolarCode(32, 24, **given).with_sizes(14, 10), PolarCode(14, 10, **given)
    assert np.array_equal(actual.encoding_matrix, expected.encoding_matrix)
    assert actual.erasure == 0.2
    assert PolarCode(32, 24, kernel).with_sizes(14, 10).erasure == PolarCode(14, 10, kernel).erasure


def test_levels_of_a_resized_code() -> None:
    code = PolarCode(64, 48, "arikan", levels=3)
    assert code.with_sizes(32, 24).levels == 3
    assert code.with_sizes(128, 96).levels == 3
    assert code.with_sizes(8, 6).levels == 3
    assert PolarCode(64, 48, "arikan").with_sizes(128, 96).levels == 7
    with pytest.raises(CodeError, match="levels=3 makes 8 butterflies"):
        code.with_sizes(64, 60)


@pytest.mark.parametrize(("kernel", "decoder"), [("rotation", "optimal"), ("arikan", "sequential")])
def test_copies_are_the_same_code(kernel: str, decoder: str) -> None:
    code = PolarCode(20, 14, kernel, decoder, erasure=0.2, seed=3)
    for again in (pickle.loads(pickle.dumps(code)), copy.copy(code), copy.deepcopy(code)):
        assert type(again) is type(code)
        assert (repr(again), again.seed, again.erasure) == (repr(code), 3, 0.2)
        assert (again.encoding_matrix == code.encoding_matrix).all()


@pytest.mark.parametrize("kind", [RotationCode, ArikanCode])
def test_a_class_for_one_kernel_creates_codes_of_this_kernel(kind: type[PolarCode]) -> None:
    for code in (kind(6, 4), kind(6, 4, kind.kernel), PolarCode(6, 4, kernel=kind.kernel)):
        assert (type(code), repr(code)) == (kind, repr(PolarCode(6, 4, kind.kernel)))
        assert (code.encoding_matrix == PolarCode(6, 4, kind.kernel).encoding_matrix).all()
    other = {"rotation": "arikan", "arikan": "rotation"}[kind.kernel]
    with pytest.raises(CodeError, match=f"{kind.__name__} has kernel={kind.kernel!r}, not {other!r}"):
        kind(6, 4, other)


def test_a_subclass_of_a_kernel_does_not_replace_it() -> None:
    class Own(ArikanCode):
        """A user-defined Arikan code."""

    assert type(Own(6, 4)) is Own
    assert type(copy.copy(Own(6, 4))) is Own
    assert type(PolarCode(6, 4, "arikan")) is ArikanCode


def test_describes_itself() -> None:
    code = PolarCode(6, 4, "arikan")
    assert repr(code) == "PolarCode(6, 4, kernel='arikan', decoder='optimal')"
    assert code.rate == pytest.approx(2 / 3)
    assert code.systematic_indices.tolist() == [0, 1, 2, 3]
    assert len(code.frozen_set) == 2
    assert PolarCode(6, 4).frozen_set.tolist() == [4, 5]


ARIKAN_6_4 = [[1, 0, 1, -1], [0, 1, 1, -1]]

ROTATION_6_4 = [
    [0.02810156966225133, 0.910960250307227, -0.42642531422383456, 0.48736349425435616],
    [0.3795806456372328, 0.9381363496374525, -0.45495533855543635, 0.13723834328075096],
]


@by_size
def test_rotation_is_mds_at_these_sizes(n: int, k: int) -> None:
    for arrived in oracles.patterns(n):
        assert rotation(n, k).is_decodable(arrived) == (arrived.sum() >= k)


@pytest.mark.parametrize(("n", "k"), [(6, 4), (32, 24), (256, 192)])
@pytest.mark.parametrize("n_columns", [1, 3, 5000])
def test_small_codes_decode_narrow_and_wide_blocks_of_integers_alike(n: int, k: int, n_columns: int) -> None:
    # Narrow blocks are multiplied by weights, and wide ones may be decoded by row additions.
    code, rng = PolarCode(n, k, "arikan"), np.random.default_rng(n)
    data = rng.integers(-(2**63), 2**63 - 1, (k, n_columns))
    coded, tracker = code.encode(data), ArrivalTracker(code, modular=True)
    for block_index in rng.permutation(n).tolist():
        if tracker.add(block_index):
            break
    received = {block_index: coded[block_index] for block_index in tracker.decoder.arrived_indices.tolist()}
    missing = tracker.missing_indices
    assert (tracker.decoder.decode(received, data.dtype) == data[missing]).all()


def test_first_parity_blocks_combine_the_most_data_blocks() -> None:
    for n, k in ((32, 24), (100, 75), (512, 384)):
        n_data_blocks = np.count_nonzero(PolarCode(n, k, "arikan").encoding_matrix % 2, axis=1)
        assert n_data_blocks.tolist() == sorted(n_data_blocks.tolist(), reverse=True)
