"""Compare all ways to avoid waiting for stragglers: `python -m benchmarks.compare [--quick]`."""
