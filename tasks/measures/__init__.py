"""What an answer says, how it is scored, and the statistics of scores."""
