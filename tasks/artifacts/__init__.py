"""The store: artifacts, the rows that were paid for, unfinished work, and who is working on what."""
