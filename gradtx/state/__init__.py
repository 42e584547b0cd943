"""How slots are stored: dtypes, codes, keys, saved layouts."""
