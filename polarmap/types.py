"""The classes of the objects that polarmap's functions return, for annotations and `isinstance`."""

from __future__ import annotations

import typing

from polarmap import lazy_names

if typing.TYPE_CHECKING:
    from polarmap.arrays.stored_result import StoredResult as StoredResult
    from polarmap.driver.coded_future import CodedFuture as CodedFuture
    from polarmap.driver.results import CodedResult as CodedResult
    from polarmap.linalg.products import CodedProduct as CodedProduct
    from polarmap.linalg.sketch import SketchEstimate as SketchEstimate
    from polarmap.maps.gradients import GradientResult as GradientResult
    from polarmap.maps.sums import CodedSum as CodedSum
    from polarmap.report import Report as Report
    from polarmap.report import TaskReport as TaskReport
else:
    __getattr__, __dir__, __all__ = lazy_names.make_lazy_exports(
        "polarmap",
        {
            "arrays.stored_result": ["StoredResult"],
            "linalg.products": ["CodedProduct"],
            "linalg.sketch": ["SketchEstimate"],
            "maps.gradients": ["GradientResult"],
            "maps.sums": ["CodedSum"],
            "report": ["Report", "TaskReport"],
            "driver.coded_future": ["CodedFuture"],
            "driver.results": ["CodedResult"],
        },
    )
