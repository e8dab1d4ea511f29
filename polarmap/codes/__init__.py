"""The mathematics: polar codes over the reals. No I/O, clock, thread or executor.

`polar` says C x = 0, `algebra` what follows where results are missing, `recovery` how they are found.
"""

from __future__ import annotations

import typing

from polarmap import lazy_names
from polarmap.codes import arikan_code, rotation_code  # noqa: F401  each tells PolarCode of its kernel

if typing.TYPE_CHECKING:
    from polarmap.codes.decoder import Decoder as Decoder
    from polarmap.codes.lagrange import LagrangeCode as LagrangeCode
    from polarmap.codes.masked import Masked as Masked
    from polarmap.codes.masked import MaskedCode as MaskedCode
    from polarmap.codes.masked_integers import MaskedIntegerCode as MaskedIntegerCode
    from polarmap.codes.polar import PolarCode as PolarCode
else:
    __getattr__, __dir__, __all__ = lazy_names.public_names(
        __name__,
        {
            "decoder": ["Decoder"],
            "lagrange": ["LagrangeCode"],
            "masked": ["Masked", "MaskedCode"],
            "masked_integers": ["MaskedIntegerCode"],
            "polar": ["PolarCode"],
        },
    )
