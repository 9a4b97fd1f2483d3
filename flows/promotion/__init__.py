"""Which adapter of a recipe is the promoted one, and how another one takes its place."""
