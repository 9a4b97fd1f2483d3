"""Records of runs, and what is done with a run that has ended."""
