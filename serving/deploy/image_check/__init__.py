"""Builds the image, runs it locked down, asks and stops it as its users do: `python -m serving.deploy.image_check`."""
