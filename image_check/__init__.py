"""Builds the image, runs it locked down, and asks and stops it as its users do: `python -m image_check --help`."""
