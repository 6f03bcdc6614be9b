"""Handling: from a delivery to its effects, its retries and its end."""
