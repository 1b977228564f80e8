"""``specvlm visualize``: one page that shows which video tokens the draft read, and the answer."""
