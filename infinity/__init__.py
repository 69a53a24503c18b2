"""Infinity: a next-scale-prediction image generator over packed token subsets."""
