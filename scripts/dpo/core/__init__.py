"""What every room stands on: whole files, secrets, the terminal, the machine, statistics."""
