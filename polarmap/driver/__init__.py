"""The only loop: outcomes of tasks -> decoders -> results that stand."""
