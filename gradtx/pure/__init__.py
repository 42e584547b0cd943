"""`tx.init` and `tx.update`: trees in, a plan for their leaves, trees out; and the same as one node of a graph."""
