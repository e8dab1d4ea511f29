"""The mathematics: polar codes over the reals. No I/O, clock, thread or executor.

`polar` says C x = 0, `base` what follows where results are missing, `real_decoders` how they are found.
"""

from __future__ import annotations

import typing

from polarmap import lazy_names
from polarmap.codes import arikan_code, hadamard_code, rotation_code  # noqa: F401  each registers its kernel

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
