"""Data as coded blocks: chosen, cut and encoded, or encoded already."""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.blocks.base import CodedData
from polarmap.blocks.choose_code import CodeName, CodeOptions, choose_code
from polarmap.blocks.coded import CodedBlocks
from polarmap.blocks.masked import MaskedBlocks
from polarmap.code.arguments import is_one_of
from polarmap.code.masked import MaskedCode
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError


def encoded(data: Any, options: CodeOptions, rtol: float | None) -> CodedData:
    """The coded blocks of the data, which may be encoded already."""
    if not hasattr(data, "coded_blocks"):
        blocks, code = choose_code(data, options, rtol)
        return MaskedBlocks(blocks, code) if isinstance(code, MaskedCode) else CodedBlocks(blocks, code)
    coded: CodedData = data.coded_blocks()
    fits = options._replace(
        blocks=None if options.blocks == coded.code.k else options.blocks,
        workers=None if options.workers == coded.n else options.workers,
        code="auto" if is_one_of(options.code, (coded.code.option,)) else options.code,
    )
    if not all(map(_is_same, fits, CodeOptions())):
        raise CodeError(
            f"the data is encoded already, as {coded.code.k} blocks for {coded.n} workers with "
            f"{coded.code!r}: leave blocks, workers, code and degree out"
        )
    return coded


def _is_same(option: Any, default: Any) -> bool:
    return option is default or (isinstance(option, (str, int, float, np.number)) and bool(option == default))


def encode_once(
    data: Any, blocks: int | None, workers: int | None, code: CodeName | PolarCode
) -> CodedBlocks:
    """Data that `coded_map` accepts, coded with the first map of it and then kept for the next ones."""
    return CodedBlocks(*choose_code(data, CodeOptions(blocks, workers, code)), keep=True)
