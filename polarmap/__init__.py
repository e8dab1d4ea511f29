"""polarmap: a map with error correction built in. Exact results, without waiting for stragglers."""

from __future__ import annotations

import typing

from polarmap import lazy_names

__version__ = "1.0.0rc1"

# The public names of the package, by the module that defines them. A module is imported when one of its names
# is first used, so that `import polarmap` is fast.
_NAMES_BY_MODULE = {
    "arrays.array": ["open_coded"],
    "arrays.encoding": ["encode"],
    "executors.pool": ["Pool", "shutdown"],
    "linalg.gram": ["coded_gram"],
    "linalg.operators": ["CodedOperator"],
    "linalg.products": ["coded_matmul"],
    "live.activation": ["dashboard"],
    "maps.coded": ["coded_map"],
    "maps.executor": ["Executor"],
    "maps.gradients": ["CodedGradient", "coded_gradient"],
    "maps.hedged": ["hedged_map"],
    "maps.submission": ["submit"],
    "maps.sums": ["coded_sum"],
    "planning.planner": ["plan"],
}
_SUBMODULES = [  # Available as `polarmap.convex` etc. without an explicit import.
    "arrays",
    "codes",
    "convex",
    "convexnn",
    "errors",
    "glm",
    "linalg",
    "planning",
    "testing",
    "types",
    "xr",
]

if typing.TYPE_CHECKING:  # Type checkers cannot use the tables above: repeat them as import statements.
    from polarmap import arrays as arrays
    from polarmap import codes as codes
    from polarmap import convex as convex
    from polarmap import convexnn as convexnn
    from polarmap import errors as errors
    from polarmap import glm as glm
    from polarmap import linalg as linalg
    from polarmap import planning as planning
    from polarmap import testing as testing
    from polarmap import types as types
    from polarmap import xr as xr
    from polarmap.arrays.array import open_coded as open_coded
    from polarmap.arrays.encoding import encode as encode
    from polarmap.executors.pool import Pool as Pool
    from polarmap.executors.pool import shutdown as shutdown
    from polarmap.linalg.gram import coded_gram as coded_gram
    from polarmap.linalg.operators import CodedOperator as CodedOperator
    from polarmap.linalg.products import coded_matmul as coded_matmul
    from polarmap.live.activation import dashboard as dashboard
    from polarmap.maps.coded import coded_map as coded_map
    from polarmap.maps.executor import Executor as Executor
    from polarmap.maps.gradients import CodedGradient as CodedGradient
    from polarmap.maps.gradients import coded_gradient as coded_gradient
    from polarmap.maps.hedged import hedged_map as hedged_map
    from polarmap.maps.submission import submit as submit
    from polarmap.maps.sums import coded_sum as coded_sum
    from polarmap.planning.planner import plan as plan
else:  # If type checkers saw the module's __getattr__, they would accept every name.
    __getattr__, __dir__, __all__ = lazy_names.make_lazy_exports(__name__, _NAMES_BY_MODULE, _SUBMODULES)
