"""HTTP: requests in, orders to a pool, answers out. Sees exchange, stats and nothing below."""
