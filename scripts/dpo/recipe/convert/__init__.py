"""Recipes of other tools, from alignment-handbook to ms-swift, as ours."""
