"""The `ssr` command: one module of commands for runs, one for the place where runs live."""
