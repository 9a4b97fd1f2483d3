"""Work pools, deployments, schedules and automations on a Prefect server."""
