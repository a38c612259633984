"""The parts of the report, each a function from results to HTML."""
