from __future__ import annotations

import numpy as np
import pytest

from polarmap import Fault, FaultyExecutor, LagrangeCode, Masked, ReplayExecutor
from polarmap.blocks.code_choice import CodeOptions
from polarmap.errors import CodeError
from polarmap.run.execute import prepared, prepared_blocks
from polarmap.run.options import MapOptions

DATA = np.arange(24.0).reshape(12, 2)


class Stored:
    """Data that says where its workers can read it."""

    def __init__(self, executor: ReplayExecutor) -> None:
        self.executor = executor
        self.shape, self.dtype = DATA.shape, DATA.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return DATA[rows]


def test_data_says_where_its_workers_can_read_it() -> None:
    mine, yours = ReplayExecutor({0: 3.0}), ReplayExecutor({0: 7.0})
    sizes, settings = CodeOptions(4, 5), MapOptions(verify=False)
    for executor, seconds in ((None, 1.0), (yours, 1.0), (FaultyExecutor(None, {0: Fault("sleep", 9)}), 1.0)):
        result = prepared_blocks(np.negative, Stored(mine), sizes, executor, settings).run(())
        np.testing.assert_allclose(result.concatenate(), -DATA, atol=1e-12)
        assert result.report.seconds == seconds
        assert result.report.executor.startswith("replay")


@pytest.mark.parametrize("code", [Masked(), LagrangeCode(12, 4, 2)])
def test_estimates_are_for_linear_functions_under_a_polar_code(code: Masked | LagrangeCode) -> None:
    with pytest.raises(CodeError, match="on_timeout='estimate' estimates blocks of linear f: not with"):
        prepared(DATA, CodeOptions(4, code=code), ReplayExecutor(), MapOptions(deadline=3.0))
