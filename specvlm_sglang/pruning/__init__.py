"""Which video tokens the draft keeps, and where a prompt's video is."""
