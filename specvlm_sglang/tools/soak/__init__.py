"""``specvlm soak``: a server under a mixed load with cuts, and what is left of it afterwards."""
