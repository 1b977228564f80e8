"""What a pair of models needs and gains, from their dimensions alone: no weights, no GPU."""
