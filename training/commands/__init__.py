"""The commands of `python -m training` beyond train, evaluate and export; __main__.py registers them."""
