"""polarmap: a map with error correction built in. Exact results, without waiting for stragglers."""

from __future__ import annotations

import importlib
import typing

from polarmap import errors, planning
from polarmap.arrays.array import CodedArray
from polarmap.arrays.audits import Audit
from polarmap.arrays.encoding import encode
from polarmap.arrays.opening import list_coded, open_coded
from polarmap.arrays.stored_objects import RawObjects
from polarmap.arrays.stored_result import Stored, StoredResult
from polarmap.arrays.zarr_objects import ZarrObjects
from polarmap.code.decoder import Decoder
from polarmap.code.lagrange import LagrangeCode
from polarmap.code.masked import Masked, MaskedCode
from polarmap.code.masked_integers import MaskedIntegerCode
from polarmap.code.polar import PolarCode
from polarmap.executors.faulty import FaultyExecutor
from polarmap.executors.pool import Pool, shutdown
from polarmap.executors.replay import ReplayExecutor
from polarmap.linalg.gram import coded_gram
from polarmap.linalg.products import CodedProduct, coded_matmul
from polarmap.maps.coded import coded_map
from polarmap.maps.executor import Executor
from polarmap.maps.gradients import CodedGradient, GradientResult, coded_gradient
from polarmap.maps.hedged import hedged_map
from polarmap.maps.submission import submit
from polarmap.maps.sums import CodedSum, coded_sum
from polarmap.planning.planner import Plan, plan
from polarmap.report import Report, TaskReport
from polarmap.run.coded_future import CodedFuture
from polarmap.run.coded_result import CodedResult
from polarmap.worker.faults import Fault

if typing.TYPE_CHECKING:
    from polarmap import convex as convex
    from polarmap import glm as glm
    from polarmap import xr as xr
    from polarmap.linalg.operators import CodedOperator
    from polarmap.linalg.sketch import SketchEstimate, sketched_gram, sketched_lstsq

__version__ = "0.1.0"

# Public names whose modules need more than numpy, or much time, to import: name -> module.
# Each stands in __all__ too, and below typing.TYPE_CHECKING for type checkers.
_LAZY: dict[str, str] = {
    "CodedOperator": "polarmap.linalg.operators",
    **dict.fromkeys(("SketchEstimate", "sketched_gram", "sketched_lstsq"), "polarmap.linalg.sketch"),
}
# Modules that need an extra, imported when they are asked for.
_MODULES = ("convex", "glm", "xr")

__all__ = [
    "Audit",
    "CodedArray",
    "CodedFuture",
    "CodedGradient",
    "CodedOperator",
    "CodedProduct",
    "CodedResult",
    "CodedSum",
    "Decoder",
    "Executor",
    "Fault",
    "FaultyExecutor",
    "GradientResult",
    "LagrangeCode",
    "Masked",
    "MaskedCode",
    "MaskedIntegerCode",
    "Plan",
    "PolarCode",
    "Pool",
    "RawObjects",
    "ReplayExecutor",
    "Report",
    "SketchEstimate",
    "Stored",
    "StoredResult",
    "TaskReport",
    "ZarrObjects",
    "coded_gradient",
    "coded_gram",
    "coded_map",
    "coded_matmul",
    "coded_sum",
    "encode",
    "errors",
    "hedged_map",
    "list_coded",
    "open_coded",
    "plan",
    "planning",
    "shutdown",
    "sketched_gram",
    "sketched_lstsq",
    "submit",
]


if not typing.TYPE_CHECKING:  # else a checker would take any name for a public one

    def __getattr__(name: str) -> typing.Any:
        if name in _MODULES:
            return importlib.import_module(f"polarmap.{name}")
        if name not in _LAZY:
            raise AttributeError(f"module 'polarmap' has no attribute {name!r}")
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", *_MODULES})
