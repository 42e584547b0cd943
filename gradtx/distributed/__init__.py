"""Work shared by ranks: layouts of shards, and the messages that ranks send."""
