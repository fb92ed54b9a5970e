"""Pages and tables of what was measured; none of them measures."""
