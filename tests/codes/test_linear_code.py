"""Tests that a new code is one class, whose matrices G, T and E are sufficient for the decoder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import polarmap
from polarmap import coded_map
from polarmap.codes import IntegerSecretSharingCode, LagrangeCode, PolarCode, SecretSharingCode
from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.linear_code import LinearCode, SystematicCode
from polarmap.codes.product import ProductCode
from polarmap.codes.uncoded import Uncoded
from polarmap.errors import CodeError
from polarmap.testing import ReplayExecutor

FACTS = (
    "supports_integers",
    "is_mds",
    "is_redundant",
    "has_uneven_parity",
    "adds_noise",
    "can_estimate",
    "supports_sparse",
    "supports_triangles",
    "is_storable",
)
POLAR_FACTS = {"is_redundant", "can_estimate", "supports_sparse", "is_storable"}


class Vandermonde(SystematicCode):
    """A systematic code for a few blocks whose parity weights are powers."""

    name, requirement = "Vandermonde", "linear in its block"

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k = n, k

    @property
    def encoding_matrix(self) -> npt.NDArray[Any]:
        rows = np.vander(np.linspace(-1, 1, self.n - self.k), self.k) + 0.5
        return rows / rows.sum(axis=1, keepdims=True)


class Differences(LinearCode):
    """A code whose results are u_i and u_i - u_0, and whose targets are the u_i."""

    name, requirement, k = "differences", "linear", 3
    n = 5
    generator_matrix = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 1, 0], [-1, 0, 1]])
    target_matrix = np.eye(3)
    encoding_matrix = generator_matrix


def test_a_new_systematic_code_works_in_a_map() -> None:
    A = np.arange(24.0).reshape(12, 2)
    y = coded_map(lambda block: block @ np.array([2.0, 1.0]), A, code=Vandermonde(6, 4))
    np.testing.assert_allclose(y.concatenate(), A @ [2.0, 1.0])


@pytest.mark.parametrize("executor", [None, ReplayExecutor()])
def test_codes_with_real_coefficients_refuse_integers(executor: Any) -> None:
    # The error is raised before any task starts, even if no parity would be needed.
    data = np.arange(24).reshape(12, 2)
    with pytest.raises(
        CodeError, match=r"does not support int64 data\. Convert the data with \.astype\(float\)"
    ):
        coded_map(lambda block: block, data, code=Vandermonde(6, 4), executor=executor)
    with pytest.raises(
        CodeError, match=r"the rotation kernel does not support int64 blocks\. Use kernel='arikan'"
    ):
        coded_map(lambda block: block, data, code=PolarCode(6, 4), executor=executor)


def test_a_new_nonsystematic_code_decodes() -> None:
    code = Differences()
    assert (code.recovery_threshold, code.n_targets, code.norm_inf, len(code.systematic_indices)) == (
        3,
        3,
        2.0,
        0,
    )
    data = np.random.default_rng(0).standard_normal((3, 4))
    coded = code.encode_parity(data)
    decoder = ArrivalTracker(code)
    assert [decoder.add(index) for index in (3, 4, 1)] == [False, False, True]
    rows = {index: coded[index] for index in (1, 3, 4)}
    np.testing.assert_allclose(decoder.decoder.decode(rows, data.dtype), data)
    with pytest.raises(CodeError, match="encodes 3 blocks, not 2"):
        code.encode_parity(data[:2])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16"])
def test_nonsystematic_encoding_is_a_product_in_the_dtype_of_the_data(dtype: str) -> None:
    code, rows = Differences(), np.random.default_rng(1).standard_normal((3, 5)).astype(dtype)
    code.encoding_matrix = np.random.default_rng(0).standard_normal((5, 3))
    encoded = code.encode_parity(rows)
    assert encoded.dtype == dtype
    expected = (code.encoding_matrix @ rows).astype(dtype)
    np.testing.assert_allclose(encoded, expected, rtol=1e-2 if dtype == "f2" else 1e-5)


def test_a_code_is_described_only_for_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vandermonde, "__repr__", lambda _: pytest.fail("the code was described"))
    assert Vandermonde(6, 4).encode_parity(np.ones((4, 3))).shape == (2, 3)


# modules that check arguments of callers
VALIDATING_MODULES = {"blocks/code_choice.py", "planning/decodability.py"}


def test_other_packages_use_properties_of_codes_and_not_classes() -> None:
    package = Path(polarmap.__file__).parent
    class_check = re.compile(r"isinstance\([^)]*\b(Uncoded|PolarCode|ProductCode|\w+Code)\b")
    modules = {path for path in package.rglob("*.py") if (package / "codes") not in path.parents}
    asking = {
        path.relative_to(package).as_posix()
        for path in modules
        if any(class_check.search(line) and "CodeType" not in line for line in path.read_text().splitlines())
    }
    assert asking <= VALIDATING_MODULES


@pytest.mark.parametrize(
    ("code", "facts"),
    [
        (PolarCode(6, 4), POLAR_FACTS | {"is_mds", "supports_triangles"}),
        (PolarCode(6, 4, "arikan"), POLAR_FACTS | {"supports_integers", "has_uneven_parity"}),
        (PolarCode(6, 4, "hadamard"), POLAR_FACTS | {"has_uneven_parity"}),
        (Uncoded(3), {"is_mds", "supports_sparse"}),
        (LagrangeCode(8, 3, 2), {"is_mds", "is_redundant"}),
        (SecretSharingCode(6, 3, 1), {"is_mds", "is_redundant", "adds_noise"}),
        (IntegerSecretSharingCode(8, 3, 1), {"supports_integers", "is_redundant", "adds_noise"}),
        (ProductCode(PolarCode(3, 2), PolarCode(4, 3)), {"is_redundant"}),
    ],
    ids=lambda value: "" if isinstance(value, set) else repr(value),  # Sets have no fixed order.
)
def test_properties_of_each_code(code: LinearCode, facts: set[str]) -> None:
    assert {name for name in FACTS if getattr(code, name)} == facts
