"""Published suites that a model judges: their questions, their settings, their formulas."""
