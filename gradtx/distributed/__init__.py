"""Layouts of shards, and ranks that own matrices."""
