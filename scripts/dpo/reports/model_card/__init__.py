"""The card of a trained policy."""
