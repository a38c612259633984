"""Figures: one style, one colour for each method everywhere, and files that say what they show."""
