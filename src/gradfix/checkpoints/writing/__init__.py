"""New checkpoints: shards, index, one commit."""
