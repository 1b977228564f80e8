"""Language-to-video attention scores: summed while the target prefills, and the op."""
