"""Dataset readers: each turns the rows of one format into raw examples, and is declared once, with `@reader`.

A new reader is one new module in this folder, which is found by itself. `registry.py` says what a declaration holds;
`data_files.py` and `formats.py` find and decode data files, and `values.py` checks single values.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
