"""Which differences between methods are more than luck: paired over seeds and images, corrected for their number."""
