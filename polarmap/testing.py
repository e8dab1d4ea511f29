"""Executors for tests and demonstrations: one with faults that you choose, and one with simulated time."""

from polarmap.executors.faults import FaultyExecutor
from polarmap.executors.replay import ReplayExecutor
from polarmap.worker.task_records import Fault

__all__ = ["Fault", "FaultyExecutor", "ReplayExecutor"]
