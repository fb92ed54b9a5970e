"""What the entry scripts share: one idea per file."""
