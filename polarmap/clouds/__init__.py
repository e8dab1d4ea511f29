"""What each cloud allows and charges, its configuration files, and how a worker gets there."""
