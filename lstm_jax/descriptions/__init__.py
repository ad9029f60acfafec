"""Descriptions as values: copied, pickled, compared and written as plain data."""
