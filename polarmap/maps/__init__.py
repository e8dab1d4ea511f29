"""The public map functions, one module each. `polarmap` exports them."""
