"""Servers that a user could take instead of ours, and the benchmark of them: `python -m load_tests peers`."""
