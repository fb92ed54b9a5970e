"""Rounds of sampling and training, held against one offline run."""
