"""polarmap: a map with error correction built in. Exact results, without waiting for stragglers."""

from polarmap import errors
from polarmap.api import CodedResult, coded_map
from polarmap.code.decoder import Decoder
from polarmap.code.polar import PolarCode
from polarmap.executors.base import FaultyExecutor
from polarmap.executors.replay import ReplayExecutor
from polarmap.report import Report, TaskReport
from polarmap.worker import Fault

__version__ = "0.1.0"

__all__ = [
    "CodedResult",
    "Decoder",
    "Fault",
    "FaultyExecutor",
    "PolarCode",
    "ReplayExecutor",
    "Report",
    "TaskReport",
    "coded_map",
    "errors",
]
