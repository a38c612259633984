"""Linear probing of frozen image encoders: the parts of ``python -m bench.probe``."""
