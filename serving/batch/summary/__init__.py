"""The page about a table of scores: reading it, its figures, its pictures, its words."""
