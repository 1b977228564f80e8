"""The tiny trained pair: its training, evaluation and enlargement."""
