"""The page on a run: its pictures, its sections, its HTML."""
