"""What the paper's own numbers disagree about, computed from ``paper.csv``: ``python -m analysis.tables --ledger``.

Each check looks at all numbers it can be applied to, says how many those were, and lists those that do not fit; one
that finds nothing is listed as such. So a corrected number changes the ledger, and nothing in it is remembered but what
the paper says in words and what its models have by construction.
"""
