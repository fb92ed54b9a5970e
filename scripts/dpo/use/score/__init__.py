"""make score: the reward that a policy implies, of any prompt and completion."""
