"""Rounds of pairs from the policy itself and training on them."""
