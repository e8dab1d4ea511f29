"""Estimate coding, products and repair of ImageNet's 1.58 TB matrix on 10,000 Lambda functions.

Sizes, prices and coding speeds are known. The other constants are assumptions: replace them by measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks import measure_cpu_seconds, parse_quick_flag, print_table
from polarmap.arrays.stripe_encoder import make_stripe_encode_function
from polarmap.arrays.weighted_sums import compute_recovery_weights, make_weighted_sum_function
from polarmap.clouds.limits import WorkerSpec
from polarmap.clouds.prices import CALL_OVERHEAD_SECONDS, USD_PER_WRITE_AND_READ, estimate_map_cost
from polarmap.codes import PolarCode

ROWS, COLUMNS, ITEMSIZE = 2_013_526, 196_608, 4  # Shape of examples/imagenet_shape.py, float32.
DATA_BYTES = float(ROWS * COLUMNS * ITEMSIZE)
WORKERS = 10_000
BANDWIDTH = 70e6  # Bytes per second between S3 and one function; 50 to 100 MB/s are typical.
LATENCY = 0.03  # Seconds per request in addition to its transfer; a worker's requests are sequential.
SLOW_FRACTION = 0.05  # Share of the workers that are slow.
SLOWDOWN = 5.0  # Factor by which slow workers take longer.
LOST_FRACTION = 0.05  # Share of the blocks that a repair finds lost.
MEMORY_BANDWIDTH = 2e9  # Bytes per second of a checksum, or of a product with a vector.
LAMBDA_WORKER = WorkerSpec("aws_lambda", "aws_s3", memory_mb=1769, poll_seconds=1.0)  # One processor.

# Bytes per second of one core of a loaded machine: of data to encode, and of parts to rebuild others from
# (`main` measures both).
CODING_SPEEDS = {(100, 75): (600e6, 1000e6), (1000, 750): (250e6, 250e6), (10_000, 7_500): (30e6, 60e6)}


class WorkerStep(NamedTuple):
    """The requests, bytes and computation of one worker that is not slow."""

    n_gets: float
    bytes_read: float
    n_puts: float = 0
    bytes_written: float = 0
    compute_seconds: float = 0

    def total_seconds(self, bandwidth: float) -> float:
        transfer_seconds = (self.bytes_read + self.bytes_written) / bandwidth
        return (self.n_gets + self.n_puts) * LATENCY + transfer_seconds + self.compute_seconds


class CostEstimate(NamedTuple):
    """The estimate of an operation: seconds, dollars and requests for data, if all workers are available."""

    seconds: float
    dollars: float
    n_requests: float


class MatrixLayout:
    """The matrix as arrays of k blocks, each coded into n; each worker has one block."""

    def __init__(self, n: int, k: int, bandwidth: float = BANDWIDTH) -> None:
        self.n, self.k, self.bandwidth = n, k, bandwidth
        self.block_bytes = DATA_BYTES / (WORKERS * k / n)
        self.part_bytes = self.block_bytes / n  # An array has as many stripes as workers.
        self.n_lost = round(LOST_FRACTION * n)
        self.encoding_speed, self.rebuilding_speed = CODING_SPEEDS[n, k]

    def encode(self) -> CostEstimate:
        """Estimate encoding: each worker reads k parts of a stripe and writes n - k.

        The parity matrix P is sent along with the function.
        """
        n, k = self.n, self.k
        data_bytes = k * self.part_bytes
        step = WorkerStep(
            k,
            data_bytes + 8 * k * (n - k),
            n - k,
            (n - k) * self.part_bytes,
            data_bytes / self.encoding_speed,
        )
        return self._with_backups([step])

    def product(self, operand_size: float) -> CostEstimate:
        """Estimate a coded product, which does not wait for slow workers.

        Each worker reads its block and `operand_size` numbers.
        """
        step = WorkerStep(
            self.n, self.block_bytes + ITEMSIZE * operand_size, 0, 0, self.block_bytes / MEMORY_BANDWIDTH
        )
        return self._estimate([step], 1.0, 1.0)

    def plain_product(self, with_backups: bool) -> CostEstimate:
        """Estimate A x without a code: each worker reads a smaller block of data, stored in one object."""
        block_bytes = DATA_BYTES / WORKERS
        step = WorkerStep(1, block_bytes + ITEMSIZE * COLUMNS, 0, 0, block_bytes / MEMORY_BANDWIDTH)
        if with_backups:
            return self._with_backups([step])
        return self._estimate([step], SLOWDOWN, 1 - SLOW_FRACTION + SLOW_FRACTION * SLOWDOWN)

    def repair(self) -> CostEstimate:
        """Estimate a repair: a map checks all parts, and another reads them to rebuild the lost ones."""
        n_available = self.n - self.n_lost
        bytes_read = n_available * self.part_bytes
        check_step = WorkerStep(n_available, bytes_read, 0, 0, bytes_read / MEMORY_BANDWIDTH)
        weight_bytes = 8 * self.n_lost * n_available
        rebuild_step = WorkerStep(
            n_available,
            bytes_read + weight_bytes,
            self.n_lost,
            self.n_lost * self.part_bytes,
            bytes_read / self.rebuilding_speed,
        )
        return self._with_backups([check_step, rebuild_step])

    def _with_backups(self, steps: list[WorkerStep]) -> CostEstimate:
        """Estimate maps without spare tasks, where a task that takes longer than most gets a backup copy."""
        return self._estimate(steps, 2.0, 1 - SLOW_FRACTION + SLOW_FRACTION * 3)

    def _estimate(self, steps: list[WorkerStep], wait_factor: float, billed_factor: float) -> CostEstimate:
        """Estimate a sequence of maps.

        Parameters
        ----------
        wait_factor, billed_factor : float
            How long a map takes, and how long each worker is billed on average, as multiples of the time of a
            worker that is not slow.
        """
        usd_per_write, usd_per_read = USD_PER_WRITE_AND_READ["aws_s3"]
        seconds = dollars = n_requests = 0.0
        for step in steps:
            step_seconds = step.total_seconds(self.bandwidth)
            map_bill = estimate_map_cost(
                LAMBDA_WORKER,
                [billed_factor * step_seconds] * WORKERS,
                wait_factor * step_seconds + CALL_OVERHEAD_SECONDS,
            )
            assert map_bill is not None
            seconds += wait_factor * step_seconds + CALL_OVERHEAD_SECONDS
            dollars += map_bill.total + WORKERS * (step.n_gets * usd_per_read + step.n_puts * usd_per_write)
            n_requests += WORKERS * (step.n_gets + step.n_puts)
        return CostEstimate(seconds, dollars, n_requests)


def estimate_operations(n: int, k: int, bandwidth: float = BANDWIDTH) -> Iterator[tuple[str, CostEstimate]]:
    """Yield the name of each operation and its estimate."""
    layout = MatrixLayout(n, k, bandwidth)
    yield "encode", layout.encode()
    yield "A x", layout.product(COLUMNS)
    yield "A'y", layout.product(ROWS)
    yield "repair", layout.repair()


def measure_coding_speeds(n: int, k: int, width: int) -> tuple[float, float]:
    """Return the speeds of CODING_SPEEDS on this machine: bytes per second of a core."""
    code, dtype = PolarCode(n, k), np.dtype(np.float32)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((k, width)).astype(dtype)
    encode_data = make_stripe_encode_function(
        make_weighted_sum_function(compute_recovery_weights(code, dtype, range(k, n)), [dtype] * (n - k)),
        False,
    )
    lost_blocks = sorted(rng.choice(n, round(LOST_FRACTION * n), replace=False).tolist())
    weights = compute_recovery_weights(code, dtype, lost_blocks)
    weights = weights[:, weights.any(axis=0)]
    rebuild_rows = make_weighted_sum_function(weights, [dtype] * len(lost_blocks))
    rows = list(rng.standard_normal((weights.shape[1], width)).astype(dtype))
    encode_seconds, _ = measure_cpu_seconds(lambda: encode_data(data), min)
    rebuild_seconds, _ = measure_cpu_seconds(lambda: rebuild_rows(rows), min)
    return data.nbytes / encode_seconds, sum(row.nbytes for row in rows) / rebuild_seconds


def format_table() -> list[str]:
    """Return the lines of the table in the documentation."""
    lines = []
    for n, k in CODING_SPEEDS:
        n_arrays = WORKERS // n
        cells = [
            f"{estimate.seconds:,.0f} s, ${estimate.dollars:,.1f}"
            for _, estimate in estimate_operations(n, k)
        ]
        lines.append(f"| {n_arrays} of ({n:,}, {k:,}) | {' | '.join(cells)} |")
    for name, with_backups in (("no code", False), ("no code, backup tasks", True)):
        estimate = MatrixLayout(100, 75).plain_product(with_backups)
        lines.append(f"| {name} | | {estimate.seconds:,.0f} s, ${estimate.dollars:,.1f} | | |")
    return lines


def main() -> None:
    codes = list(CODING_SPEEDS)[: 2 if parse_quick_flag(__doc__) else 3]
    print("| arrays of | encode | A x | A' y | repair |", *format_table(), sep="\n")
    for bandwidth in (50e6, 100e6):
        summary = ", ".join(
            f"{name} {estimate.seconds:.0f} s" for name, estimate in estimate_operations(100, 75, bandwidth)
        )
        print(f"(100, 75) at {bandwidth / 1e6:.0f} MB/s: {summary}")
    print("\nMB per second and core: data to encode, and parts from which to rebuild 5 % of the blocks")
    header = ("code", "encode", "assumed", "rebuild", "assumed")
    print_table(header, map(compare_speeds, codes))


def compare_speeds(code: tuple[int, int]) -> tuple[object, ...]:
    """Return measured and assumed speeds of a code, in MB/s."""
    measured_speeds, assumed_speeds = measure_coding_speeds(*code, 4_000_000 // code[0]), CODING_SPEEDS[code]
    return (
        code,
        measured_speeds[0] / 1e6,
        assumed_speeds[0] / 1e6,
        measured_speeds[1] / 1e6,
        assumed_speeds[1] / 1e6,
    )


if __name__ == "__main__":
    main()
