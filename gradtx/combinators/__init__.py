"""Combinators: transformations that wrap other transformations."""
