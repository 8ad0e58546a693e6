"""Checkpoints as files: safetensors, pickled state dicts, shards, the Hub."""
