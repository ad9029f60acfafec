"""What runs one step: the cells, and the noise that any of them can have."""
