"""Models: found, trusted, loaded whole, adapted, sampled and scored."""
