"""Truncated networks: their blocks, weights, heads, and what each strategy trains."""
