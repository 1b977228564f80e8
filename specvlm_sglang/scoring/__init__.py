"""Language-to-video attention scores: query rows captured while the target prefills, and the op."""
