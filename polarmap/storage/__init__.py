"""Bytes by key: what a store does (`base`), in a folder and in a bucket."""
