"""The transformations, one module an idea."""
