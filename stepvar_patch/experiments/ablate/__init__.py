"""Variants of pruning against the dense pictures: one table row per cell."""
