"""What goes on inside encoders: how far they attend, what frequencies and features their maps hold. Needs torch."""
