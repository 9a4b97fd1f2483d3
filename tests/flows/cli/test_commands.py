"""Every command of `ssr` has a file of its name, and none is forgotten in the list of commands."""

from __future__ import annotations

from pathlib import Path

from flows.cli import main

FOLDER = Path(main.__file__).parent
SHARED = {"__init__", "__main__", "main", "options"}  # what commands use


def test_every_command_is_found_in_the_file_of_its_name_and_every_file_is_a_command():
    names = {command.callback.__name__ for command in main.app.registered_commands if command.callback}
    groups = {group.name for group in main.app.registered_groups}
    assert names | groups == {path.stem for path in FOLDER.glob("*.py")} - SHARED
