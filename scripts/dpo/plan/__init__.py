"""What a run needs, before it is paid for: memory, time and price."""
