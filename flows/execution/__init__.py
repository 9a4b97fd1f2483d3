"""How the steps of a run are executed under Prefect, and what people see of it meanwhile."""
