"""Networks of the domain-specific systems, and the parts that several of them share."""
