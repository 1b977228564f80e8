"""What a user can see of SPECVLM: response fields and their detail, totals, metrics, phases."""
