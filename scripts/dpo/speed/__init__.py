"""How fast: the workload, the table, and what only a GPU can show."""
