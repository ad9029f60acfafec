"""A whole run: a loop of steps and what belongs around it; evaluation."""
