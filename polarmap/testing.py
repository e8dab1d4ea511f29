"""Fault injection for tests and demonstrations, and an executor with a virtual clock."""

from polarmap.executors.faults import FaultyExecutor
from polarmap.executors.replay import ReplayExecutor
from polarmap.worker.task_records import Fault

__all__ = ["Fault", "FaultyExecutor", "ReplayExecutor"]
