"""How one step runs: fingerprint, cache, stage, commit; in this process or in one of its own."""
