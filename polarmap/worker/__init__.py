"""What travels to workers, by value: the standard library and numpy at most."""
