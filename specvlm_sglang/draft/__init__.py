"""The draft: its worker, its private pruned KV cache, the inputs it is prefilled with."""
