"""One small coded map through a configuration: `make smoke BACKEND=...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from polarmap import coded_map
from polarmap.clouds import settings
from polarmap.errors import ExecutorError, PolarmapError
from polarmap.executors.faulty import FaultyExecutor
from polarmap.worker.faults import Fault

ROWS, COLUMNS, BLOCKS, WORKERS = 240, 50, 6, 8
SLEEP_SECONDS = 60.0  # of the one straggler: longer than the map, shorter than any backend's limit


def smoke(config_file: str, backend: str, timeout: float = 600.0) -> str:
    """Multiply a small matrix on 8 workers, one of them asleep; what happened, as text.

    Parameters
    ----------
    config_file : str
        A Lithops configuration.
    backend : str
        That it must be for.
    timeout : float
        Seconds; the first map on a backend also deploys its runtime.

    Raises
    ------
    PolarmapError
        What was wrong with the configuration, the backend or the result.
    """
    config = settings.read(config_file)
    if settings.backend_of(config) != backend:
        raise ExecutorError(f"{config_file} is for {settings.backend_of(config)!r}, not for {backend!r}")
    A = np.arange(ROWS * COLUMNS, dtype=float).reshape(ROWS, COLUMNS) / COLUMNS
    x = np.ones(COLUMNS)
    executor = FaultyExecutor(config_file, {1: Fault("sleep", SLEEP_SECONDS)})
    y = coded_map(
        lambda block: block @ x, A, blocks=BLOCKS, workers=WORKERS, executor=executor, timeout=timeout
    )
    if not np.allclose(y.concatenate(), A @ x):
        raise ExecutorError(f"{backend} returned wrong results:\n{y.report}")
    return str(y.report)


def main(arguments: Sequence[str]) -> int:
    """`python -m polarmap.cli.smoke BACKEND CONFIG`; 1 and one message when it does not work."""
    backend, config_file = arguments
    try:
        print(f"{smoke(config_file, backend)}\nsmoke: {backend} works.")
    except PolarmapError as error:
        print(f"smoke: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
