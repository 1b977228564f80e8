"""Whether ``--speculative-adaptive`` is ever slower than plain decoding or fixed steps."""
