"""Who starts the cells' processes: one module a backend, all with the same ``dispatch``."""
