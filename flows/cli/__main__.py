"""`python -m flows.cli`: the `ssr` command."""

from flows.cli.main import main

main()
