"""Tests of decoding integers exactly. The oracle is the rank of the parity checks modulo 2."""

from __future__ import annotations

import code_oracles as oracles
import numpy as np
import pytest
from polar_codes import arikan, by_size, received

from polarmap.errors import NotDecodableError


@by_size
def test_arikan_decodes_integers_iff_the_rank_modulo_two_is_full(n: int, k: int) -> None:
    code, check = arikan(n, k), oracles.polar_check(arikan(n, k))
    data = np.random.default_rng(n * k).integers(-(2**40), 2**40, k)
    coded = code.encode(data)
    assert not (check @ coded).any()  # The matrix has full rank, so only codewords satisfy it.
    for arrived in oracles.patterns(n):
        is_full = oracles.gf2_decodable(check, arrived)
        assert code.is_decodable(arrived) == is_full
        if is_full:
            assert code.decode(received(coded, arrived)).tolist() == data.tolist()
        else:
            with pytest.raises(NotDecodableError):
                code.decode(received(coded, arrived))
