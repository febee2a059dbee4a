"""Offline scoring: the same predictor over files instead of requests."""
