"""What the tests share: tiny checkpoints, clips, servers and the transformers side."""
