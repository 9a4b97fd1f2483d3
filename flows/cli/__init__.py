"""The `ssr` command: one file for each command, which has its name. `main` lists the commands."""
