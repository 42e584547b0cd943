"""The optimizers with a name, one module a family: each a docstring and a chain."""
