"""``specvlm bench``: SPECVLM beside plain decoding by the same server software, in one run."""
