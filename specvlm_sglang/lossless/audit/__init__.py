"""``--specvlm-audit``: finished answers are decoded again without a draft, and compared."""
