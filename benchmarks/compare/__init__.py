"""Every way not to wait for stragglers, side by side: `python -m benchmarks.compare [--quick]`."""
