"""Algorithms: a file for each method, with its links, then its optimizers; `ls` is the catalog.

`import gradtx` loads none of them: `gradtx.adamw` loads its file at the first access.
"""
