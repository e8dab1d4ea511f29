"""The map functions, a module each; their functions are in `polarmap`."""
