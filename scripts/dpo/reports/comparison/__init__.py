"""Runs beside each other: what differs, what they came to, and what of it is noise."""
