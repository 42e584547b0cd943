"""How slots are stored: dtypes, codes, saved layouts."""
