"""Check that the workers of an executor can use the storage of a job."""

from __future__ import annotations

from typing import NamedTuple

from polarmap.errors import ExecutorError
from polarmap.executors.interface import JobSpec
from polarmap.worker.locations import Location


class Reach(NamedTuple):
    """The storage that the workers of an executor can use.

    backend : the backend of Lithops that runs the workers; empty if they are on this machine.
    storage : the storage backend whose buckets they can use; empty if they can use none.
    can_ask_driver : whether workers can ask the driver for segments while a task runs.
    """

    backend: str = ""
    storage: str = ""
    can_ask_driver: bool = False

    def check_job(self, job_spec: JobSpec) -> None:
        """Raise ExecutorError unless workers can read the blocks of a job and store its results."""
        location = job_spec.blocks.location
        if location is not None and (obstacle := self._explain_obstacle(location)):
            raise ExecutorError(f"the array lies in {obstacle}")
        self.check_output(job_spec)

    def check_output(self, job_spec: JobSpec) -> None:
        """Raise ExecutorError unless workers can store the results of a job where it wants them."""
        location = None if job_spec.output_spec is None else job_spec.output_spec.location
        if location is not None and not location.is_writable:
            raise ExecutorError(
                f"the array is to stay in {location.root}, which workers cannot reach: leave executor out, "
                "or choose a folder or a bucket"
            )
        if location is not None and (obstacle := self._explain_obstacle(location)):
            raise ExecutorError(f"the array is to stay in {obstacle}")

    def _explain_obstacle(self, location: Location) -> str:
        """Return what keeps workers from a location, and the remedy; empty if they can reach it."""
        if location.is_sent_by_driver and not self.can_ask_driver:
            return f"{location.root}, which workers cannot reach: leave executor out"
        if location.is_memory_mapped and self.backend:
            return (
                f"folder {location.root!r} of this machine, which workers on {self.backend} cannot reach: "
                "use storage= of that backend"
            )
        if not location.uses_storage or location.backend == self.storage:
            return ""
        bucket = f"{location.backend} bucket {location.root!r}"
        if not self.storage:
            return f"{bucket}: pass executor=, the Lithops configuration of that bucket"
        return (
            f"{bucket}, but this executor stores in {self.storage}: use the Lithops configuration of that "
            "bucket for both"
        )
