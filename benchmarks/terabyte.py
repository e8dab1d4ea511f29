"""Coding ImageNet's matrix of 1.58 TB, its products and repair on 10,000 Lambda functions, on paper.

Sizes, prices and the speed of coding are known, the rest is assumed: replace it by what you measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks import is_quick, processor_seconds, show
from polarmap.arrays.stripe_encoder import make_encode_task
from polarmap.arrays.weighted_sums import compute_recovery_weights, make_weighted_sum_function
from polarmap.clouds.limits import WorkerSpec
from polarmap.clouds.prices import CALL_OVERHEAD_SECONDS, USD_PER_WRITE_AND_READ, estimate_map_cost
from polarmap.codes import PolarCode

ROWS, COLUMNS, ITEMSIZE = 2_013_526, 196_608, 4  # of examples/imagenet_shape.py; float32
DATA = float(ROWS * COLUMNS * ITEMSIZE)  # bytes
WORKERS = 10_000
BANDWIDTH = 70e6  # bytes per second from and to S3, of one function: 50 to 100 MB/s are seen
LATENCY = 0.03  # seconds of a request, beside its bytes; a worker makes one after another
SLOW = 0.05  # share of the workers that take several times as long
FACTOR = 5.0  # how many times
LOST = 0.05  # share of the blocks that a repair finds lost
MEMORY_SPEED = 2e9  # bytes per second of a checksum, or of a product with a vector
LAMBDA = WorkerSpec("aws_lambda", "aws_s3", memory_mb=1769, poll_seconds=1.0)  # one processor

# Bytes per second of one core, of a loaded machine: of data that is encoded, and of parts that are read to
# rebuild others (`main` measures them).
CODING = {(100, 75): (600e6, 1000e6), (1000, 750): (250e6, 250e6), (10_000, 7_500): (30e6, 60e6)}


class Step(NamedTuple):
    """What one worker does, and how long it takes: seconds of one that is not slow."""

    gets: float
    read: float
    puts: float = 0
    written: float = 0
    computing: float = 0

    def seconds(self, bandwidth: float) -> float:
        moved = (self.read + self.written) / bandwidth
        return (self.gets + self.puts) * LATENCY + moved + self.computing


class Estimate(NamedTuple):
    """Of one operation: seconds with all workers there, dollars, requests for data."""

    seconds: float
    dollars: float
    requests: float


class Layout:
    """The matrix as arrays of k blocks each, coded into n; each worker has one block."""

    def __init__(self, n: int, k: int, bandwidth: float = BANDWIDTH) -> None:
        self.n, self.k, self.bandwidth = n, k, bandwidth
        self.block = DATA / (WORKERS * k / n)
        self.part = self.block / n  # as many stripes as workers
        self.lost = round(LOST * n)
        self.encoding, self.rebuilding = CODING[n, k]

    def encode(self) -> Estimate:
        """Each worker takes a stripe: k parts in, n - k out; P comes with the function."""
        n, k = self.n, self.k
        data = k * self.part
        step = Step(k, data + 8 * k * (n - k), n - k, (n - k) * self.part, data / self.encoding)
        return self._with_backups([step])

    def product(self, operand: float) -> Estimate:
        """Each worker reads its block, and the operand of so many numbers; nobody waits for slow ones."""
        step = Step(self.n, self.block + ITEMSIZE * operand, 0, 0, self.block / MEMORY_SPEED)
        return self._estimate([step], 1.0, 1.0)

    def plain_product(self, with_backups: bool) -> Estimate:
        """Estimate A x without a code: all workers hold data, each a smaller block in one object."""
        block = DATA / WORKERS
        step = Step(1, block + ITEMSIZE * COLUMNS, 0, 0, block / MEMORY_SPEED)
        if with_backups:
            return self._with_backups([step])
        return self._estimate([step], FACTOR, 1 - SLOW + SLOW * FACTOR)

    def repair(self) -> Estimate:
        """A map reads all parts and compares checksums, another reads them again and rebuilds lost ones."""
        there = self.n - self.lost
        read = there * self.part
        check = Step(there, read, 0, 0, read / MEMORY_SPEED)
        weights = 8 * self.lost * there
        rebuild = Step(there, read + weights, self.lost, self.lost * self.part, read / self.rebuilding)
        return self._with_backups([check, rebuild])

    def _with_backups(self, steps: list[Step]) -> Estimate:
        """Estimate maps without spare tasks: a slow task gets a copy once it takes longer than the others."""
        return self._estimate(steps, 2.0, 1 - SLOW + SLOW * 3)

    def _estimate(self, steps: list[Step], wait: float, paid: float) -> Estimate:
        """`wait`, `paid`: what is waited for, and paid of each worker, in times of one that is not slow."""
        write, read = USD_PER_WRITE_AND_READ["aws_s3"]
        seconds = dollars = requests = 0.0
        for step in steps:
            each = step.seconds(self.bandwidth)
            bill = estimate_map_cost(LAMBDA, [paid * each] * WORKERS, wait * each + CALL_OVERHEAD_SECONDS)
            assert bill is not None
            seconds += wait * each + CALL_OVERHEAD_SECONDS
            dollars += bill.total + WORKERS * (step.gets * read + step.puts * write)
            requests += WORKERS * (step.gets + step.puts)
        return Estimate(seconds, dollars, requests)


def model(n: int, k: int, bandwidth: float = BANDWIDTH) -> Iterator[tuple[str, Estimate]]:
    """Each operation and its estimate."""
    layout = Layout(n, k, bandwidth)
    yield "encode", layout.encode()
    yield "A x", layout.product(COLUMNS)
    yield "A'y", layout.product(ROWS)
    yield "repair", layout.repair()


def measured(n: int, k: int, width: int) -> tuple[float, float]:
    """Bytes per second of a core, as in CODING, on this machine."""
    code, dtype = PolarCode(n, k), np.dtype(np.float32)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((k, width)).astype(dtype)
    encode = make_encode_task(
        make_weighted_sum_function(compute_recovery_weights(code, dtype, range(k, n)), [dtype] * (n - k)),
        False,
    )
    lost = sorted(rng.choice(n, round(LOST * n), replace=False).tolist())
    weights = compute_recovery_weights(code, dtype, lost)
    weights = weights[:, weights.any(axis=0)]
    rebuild = make_weighted_sum_function(weights, [dtype] * len(lost))
    rows = list(rng.standard_normal((weights.shape[1], width)).astype(dtype))
    encoding, _ = processor_seconds(lambda: encode(data), min)
    rebuilding, _ = processor_seconds(lambda: rebuild(rows), min)
    return data.nbytes / encoding, sum(row.nbytes for row in rows) / rebuilding


def table() -> list[str]:
    """As it stands in the documentation."""
    lines = []
    for n, k in CODING:
        count = WORKERS // n
        cells = [f"{one.seconds:,.0f} s, ${one.dollars:,.1f}" for _, one in model(n, k)]
        lines.append(f"| {count} of ({n:,}, {k:,}) | {' | '.join(cells)} |")
    for name, with_backups in (("no code", False), ("no code, backup tasks", True)):
        one = Layout(100, 75).plain_product(with_backups)
        lines.append(f"| {name} | | {one.seconds:,.0f} s, ${one.dollars:,.1f} | | |")
    return lines


def main() -> None:
    codes = list(CODING)[: 2 if is_quick(__doc__) else 3]
    print("| arrays of | encode | A x | A' y | repair |", *table(), sep="\n")
    for bandwidth in (50e6, 100e6):
        found = ", ".join(f"{name} {one.seconds:.0f} s" for name, one in model(100, 75, bandwidth))
        print(f"(100, 75) at {bandwidth / 1e6:.0f} MB/s: {found}")
    print("\nMB per second and core: of data to encode, of parts to rebuild 5 % of the blocks from")
    header = ("code", "encode", "taken as", "rebuild", "taken as")
    show(header, map(speeds, codes))


def speeds(code: tuple[int, int]) -> tuple[object, ...]:
    """Measured, beside what the model takes."""
    found, taken = measured(*code, 4_000_000 // code[0]), CODING[code]
    return code, found[0] / 1e6, taken[0] / 1e6, found[1] / 1e6, taken[1] / 1e6


if __name__ == "__main__":
    main()
