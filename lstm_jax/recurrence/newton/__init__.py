"""Newton's method on the states of all steps at once, and the affine scans it needs."""
