"""A run, and what one does with it: fit, restore, verify, compare, predict."""
