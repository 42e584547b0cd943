"""Work shared by ranks: layouts of shards, the messages that ranks send, and ranks that own matrices."""
