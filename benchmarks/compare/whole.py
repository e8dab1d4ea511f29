"""Completion with everything in it: coding, transfer, and the wait for results.

One driver holds the data, codes, sends and receives; every worker fetches its block and leaves its
result, which is as large as a block. The steps follow each other: nothing overlaps.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.compare.codes import Measured
from polarmap.planning import Completion

DRIVER = 1.25e9  # bytes per second of the driver, 10 Gbit/s
WORKER = 75e6  # bytes per second of a worker, 0.6 Gbit/s
BLOCKS = (1_000_000, 64_000_000)  # bytes


class Whole(NamedTuple):
    """Seconds of one scheme beside its tasks.

    encode, decode : on one core of the driver; decoding with its plan.
    transfer : blocks and results, to and from driver and workers.
    """

    encode: float
    transfer: float
    decode: float

    @property
    def seconds(self) -> float:
        """Together."""
        return sum(self)


def beside_tasks(job: Completion, codes: dict[str, Measured], size: int) -> Whole:
    """What a scheme takes beside its tasks, with blocks of so many bytes.

    On demand is charged all the coding of rotation, and sends the parity blocks that are started.
    """
    late = "on demand" in job.scheme
    code = codes["rotation"] if late else codes.get(job.scheme)
    sent = job.started if late else float(job.k if code is None else job.n)
    transfer = 2 * size / WORKER + (sent + job.arrivals) * size / DRIVER
    if code is None:
        return Whole(0.0, transfer, 0.0)
    data = job.k * size
    return Whole(code.encode_seconds * data, transfer, code.plan_seconds + code.decode_seconds * data)
