"""polarmap: a map with error correction built in. Exact results, without waiting for stragglers."""

from __future__ import annotations

import importlib
import typing

__version__ = "1.0.0rc1"

# Module -> its public names. These are looked up when they are asked for, as few need all modules: here, and
# in workers, which import this package with each module that they run. None becomes an attribute for that:
# what a function reaches, in this package too, would seem to have changed (run.trusted).
_NAMES = {
    "arrays.array": ["CodedArray", "list_coded", "open_coded"],
    "arrays.audits": ["Audit"],
    "arrays.encoding": ["encode"],
    "arrays.sources": ["RawObjects"],
    "arrays.stored_result": ["Stored", "StoredResult"],
    "arrays.zarr_objects": ["ZarrObjects"],
    "code.decoder": ["Decoder"],
    "code.lagrange": ["LagrangeCode"],
    "code.masked": ["Masked", "MaskedCode"],
    "code.masked_integers": ["MaskedIntegerCode"],
    "code.polar": ["PolarCode"],
    "executors": ["FaultyExecutor"],
    "executors.pool": ["Pool", "shutdown"],
    "executors.replay": ["ReplayExecutor"],
    "linalg.gram": ["coded_gram"],
    "linalg.operators": ["CodedOperator"],
    "linalg.products": ["CodedProduct", "coded_matmul"],
    "linalg.sketch": ["SketchEstimate", "sketched_gram", "sketched_lstsq"],
    "maps.coded": ["coded_map"],
    "maps.executor": ["Executor"],
    "maps.gradients": ["CodedGradient", "GradientResult", "coded_gradient"],
    "maps.hedged": ["hedged_map"],
    "maps.submission": ["submit"],
    "maps.sums": ["CodedSum", "coded_sum"],
    "planning.planner": ["Plan", "plan"],
    "report": ["Report", "TaskReport"],
    "run.coded_future": ["CodedFuture"],
    "run.results": ["CodedResult"],
    "worker.messages": ["Fault"],
}
_MODULES = ["convex", "errors", "glm", "planning", "xr"]  # which are there as attributes, too
_HOMES = {name: f"polarmap.{module}" for module, names in _NAMES.items() for name in names}

if typing.TYPE_CHECKING:  # the same for type checkers, which read no table
    from polarmap import convex as convex
    from polarmap import errors as errors
    from polarmap import glm as glm
    from polarmap import planning as planning
    from polarmap import xr as xr
    from polarmap.arrays.array import CodedArray as CodedArray
    from polarmap.arrays.array import list_coded as list_coded
    from polarmap.arrays.array import open_coded as open_coded
    from polarmap.arrays.audits import Audit as Audit
    from polarmap.arrays.encoding import encode as encode
    from polarmap.arrays.sources import RawObjects as RawObjects
    from polarmap.arrays.stored_result import Stored as Stored
    from polarmap.arrays.stored_result import StoredResult as StoredResult
    from polarmap.arrays.zarr_objects import ZarrObjects as ZarrObjects
    from polarmap.codes.decoder import Decoder as Decoder
    from polarmap.codes.lagrange import LagrangeCode as LagrangeCode
    from polarmap.codes.masked import Masked as Masked
    from polarmap.codes.masked import MaskedCode as MaskedCode
    from polarmap.codes.masked_integers import MaskedIntegerCode as MaskedIntegerCode
    from polarmap.codes.polar import PolarCode as PolarCode
    from polarmap.executors import FaultyExecutor as FaultyExecutor
    from polarmap.executors.pool import Pool as Pool
    from polarmap.executors.pool import shutdown as shutdown
    from polarmap.executors.replay import ReplayExecutor as ReplayExecutor
    from polarmap.linalg.gram import coded_gram as coded_gram
    from polarmap.linalg.operators import CodedOperator as CodedOperator
    from polarmap.linalg.products import CodedProduct as CodedProduct
    from polarmap.linalg.products import coded_matmul as coded_matmul
    from polarmap.linalg.sketch import SketchEstimate as SketchEstimate
    from polarmap.linalg.sketch import sketched_gram as sketched_gram
    from polarmap.linalg.sketch import sketched_lstsq as sketched_lstsq
    from polarmap.maps.coded import coded_map as coded_map
    from polarmap.maps.executor import Executor as Executor
    from polarmap.maps.gradients import CodedGradient as CodedGradient
    from polarmap.maps.gradients import GradientResult as GradientResult
    from polarmap.maps.gradients import coded_gradient as coded_gradient
    from polarmap.maps.hedged import hedged_map as hedged_map
    from polarmap.maps.submission import submit as submit
    from polarmap.maps.sums import CodedSum as CodedSum
    from polarmap.maps.sums import coded_sum as coded_sum
    from polarmap.planning.planner import Plan as Plan
    from polarmap.planning.planner import plan as plan
    from polarmap.report import Report as Report
    from polarmap.report import TaskReport as TaskReport
    from polarmap.run.coded_future import CodedFuture as CodedFuture
    from polarmap.run.results import CodedResult as CodedResult
    from polarmap.worker.messages import Fault as Fault
else:  # which they do not read: a checker would take any name for a public one
    __all__ = sorted([*_HOMES, "errors", "planning"])

    def __getattr__(name: str) -> typing.Any:
        if name in _MODULES:
            return importlib.import_module(f"polarmap.{name}")
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'polarmap' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*__all__, "__version__", *_MODULES})
