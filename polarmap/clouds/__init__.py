"""Limits, prices and configuration of the supported cloud backends."""
