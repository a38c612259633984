"""A small SAM of one's own: pre-trained on generated scenes, first to see, then to answer prompts."""
