"""How cells are run: plan, dispatch, train, score, record."""
