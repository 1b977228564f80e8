"""``specvlm batch``: one question about many videos, or many about many."""
