"""Serving: a bundle in, answers out. Knows nothing of training."""
