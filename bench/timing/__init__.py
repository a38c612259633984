"""How fast a method trains and predicts: what a cell of kind "speed" measures.

The real optimiser step and the real prediction, on pictures that are made up, since speed does not depend on what they
show, and by default with random weights, for the same reason. Everything starts in memory: reading files is no part
of it.
"""
