"""How a chain runs: leaves, contexts, rules, calls, ranks that own matrices."""
