"""The form that starts a run in the Prefect UI."""
