"""Gradients through training: through a solution instead of the steps that lead to it, and of code with a module."""
