"""Preference data: rows as found, formatted, tokenised, linted, set aside if faulty."""
