"""Erasure codes for numbers: how data blocks are encoded, and how missing results are decoded.

This package contains the mathematics of polarmap and does no I/O. A map encodes its data with a code from
here and passes each result that arrives to an `ArrivalTracker`, which tells when enough have arrived. An
`ErasureDecoder` then computes the missing results. `base` defines the terms, `polar` the default code, and
`real_decoders` the decoders.
"""

from __future__ import annotations

import typing

from polarmap import lazy_names

# Importing these modules registers their codes with PolarCode, which selects one of them by the name of its
# kernel. The module of the Hadamard kernel is rarely needed and is imported on first use.
from polarmap.codes import arikan_code, rotation_code  # noqa: F401

if typing.TYPE_CHECKING:
    from polarmap.codes.arrival_tracker import ArrivalTracker as ArrivalTracker
    from polarmap.codes.arrival_tracker import DecodingState as DecodingState
    from polarmap.codes.integer_secret_sharing import IntegerSecretSharingCode as IntegerSecretSharingCode
    from polarmap.codes.lagrange import LagrangeCode as LagrangeCode
    from polarmap.codes.polar import PolarCode as PolarCode
    from polarmap.codes.secret_sharing import SecretSharing as SecretSharing
    from polarmap.codes.secret_sharing import SecretSharingCode as SecretSharingCode
else:
    __getattr__, __dir__, __all__ = lazy_names.make_lazy_exports(
        __name__,
        {
            "arrival_tracker": ["ArrivalTracker", "DecodingState"],
            "lagrange": ["LagrangeCode"],
            "secret_sharing": ["SecretSharing", "SecretSharingCode"],
            "integer_secret_sharing": ["IntegerSecretSharingCode"],
            "polar": ["PolarCode"],
        },
    )
