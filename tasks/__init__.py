"""The steps of Selective Self-Rehearsal, and what they stand on. Only `tasks.running.step` knows Prefect."""
