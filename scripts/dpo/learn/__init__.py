"""Experiments that show what DPO does, on the embedded default: `make learn`."""
