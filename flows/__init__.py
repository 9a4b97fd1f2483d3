"""The flows that chain the steps, and the `ssr` command."""
