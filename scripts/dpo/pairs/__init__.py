"""Preference data made here: prompts answered, judged and paired."""
