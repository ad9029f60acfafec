"""One step of training, and what it changes."""
