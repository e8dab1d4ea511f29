"""Simulations of ways to run a job for which no formula is known, such as backup tasks for late tasks."""
