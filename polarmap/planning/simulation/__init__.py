"""Simulations of jobs without a closed formula: backup tasks, parity on demand, over-decomposition."""
