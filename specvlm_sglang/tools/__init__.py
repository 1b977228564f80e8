"""The ``specvlm`` command: doctor, demo, page and benchmark. Nothing that serves imports it."""
