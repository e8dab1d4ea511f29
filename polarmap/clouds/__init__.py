"""What each cloud allows and charges, and its configuration files."""
