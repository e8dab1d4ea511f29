"""Misfortunes for tests and demonstrations: faults of workers, and executors that have them."""

from polarmap.executors.faults import FaultyExecutor
from polarmap.executors.replay import ReplayExecutor
from polarmap.worker.task_records import Fault

__all__ = ["Fault", "FaultyExecutor", "ReplayExecutor"]
