"""Losses, penalties and metrics, each with what it is divided by."""
