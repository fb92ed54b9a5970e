"""A finished run's policy as a folder that plain transformers loads, checked before it counts."""
