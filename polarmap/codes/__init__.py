"""Erasure codes over the reals and over integers: how blocks are encoded and results decoded.

This package holds the mathematics of polarmap and does no I/O. The map functions encode the data with a code
from here, the collector feeds the arrivals to an `ArrivalTracker`, and an `ErasureDecoder` computes the
missing results. `base` defines the terms, `polar` the default code, and `real_decoders` the decoders.
"""

from __future__ import annotations

import typing

from polarmap import lazy_names

# Importing a kernel registers it with PolarCode, which imports the Hadamard kernel on first use.
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
