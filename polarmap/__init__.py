"""A map with error correction built in."""
