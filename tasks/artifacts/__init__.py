"""The store: artifacts, the rows that were paid for, unfinished work, and claims."""
