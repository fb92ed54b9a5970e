"""A recipe: parsed strictly, with our own arguments, and refused where it could not train."""
