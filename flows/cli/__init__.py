"""The `ssr` command: a file for each command, called as the command. `main` lists them."""
