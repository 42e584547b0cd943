"""How a chain runs: leaves, contexts, rules, calls."""
