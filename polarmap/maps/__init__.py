"""The verbs, a module each; their functions are in `polarmap`."""
