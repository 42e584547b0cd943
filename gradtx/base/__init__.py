"""What every other room uses: trees, exact numbers, errors, torch's private names."""
