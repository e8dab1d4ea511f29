"""Simulate jobs for which there is no formula: backups, parity on demand, over-decomposition."""
