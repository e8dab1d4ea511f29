"""What maps return: results, futures and reports, for annotations and `isinstance`."""

from polarmap.arrays.stored_result import StoredResult
from polarmap.linalg.products import CodedProduct
from polarmap.linalg.sketch import SketchEstimate
from polarmap.maps.gradients import GradientResult
from polarmap.maps.sums import CodedSum
from polarmap.report import Report, TaskReport
from polarmap.run.coded_future import CodedFuture
from polarmap.run.results import CodedResult

__all__ = [
    "CodedFuture",
    "CodedProduct",
    "CodedResult",
    "CodedSum",
    "GradientResult",
    "Report",
    "SketchEstimate",
    "StoredResult",
    "TaskReport",
]
