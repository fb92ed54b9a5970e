"""Preference data: rows as they were found, formatted, tokenised, linted, and set aside if faulty."""
