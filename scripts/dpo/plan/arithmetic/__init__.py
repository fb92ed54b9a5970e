"""What a run needs, counted: memory term by term, tokens, FLOPs and hours."""
