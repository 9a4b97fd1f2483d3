"""The directions of imports, the top-level folders and the packages: DESIGN, section 2, as tests."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(ROOT).as_posix() for top in ("flows", "tasks") for path in (ROOT / top).rglob("*.py"))
# Every room has a floor, and imports only from floors below its own. Rooms on one floor do not know each other.
FLOORS = (
    ("tasks.engine_kinds", "tasks.errors", "tasks.wording"),
    ("tasks.artifacts", "tasks.tables", "tasks.templates", "tasks.lab"),
    ("tasks.measures", "tasks.policies", "tasks.readers"),
    ("tasks.config",),
    ("tasks.models", "tasks.running"),
    ("tasks.engines",),
    ("tasks.asking",),
    (
        "tasks.ingest", "tasks.generate", "tasks.judge", "tasks.selection", "tasks.train", "tasks.evaluate",
        "tasks.promotion", "tasks.report",
    ),
    ("flows.promotion",),
    ("flows.rehearsal",),
    ("flows.execution",),
    ("flows.planning",),
    ("flows.runs",),
    ("flows.form",),
    ("flows.deployment",),
    ("flows.run", "flows.steps"),
    ("flows.cli",),
)  # fmt: skip
HEAVY = ("torch", "trl", "peft", "lm_eval", "transformers", "datasets", "accelerate")


class Import(NamedTuple):
    """One imported module; `at_import` when loading the file loads it, too."""

    name: str
    line: int
    at_import: bool


def imports(module: str) -> Iterator[Import]:
    yield from _imports(ast.parse((ROOT / module).read_text()).body, module, at_import=True)


def _imports(body: list[ast.stmt], module: str, *, at_import: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from tasks import store` may name a module or something in one: give both.
            yield from (Import(f"{_base(node, module)}.{alias.name}", node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(node.body, module, at_import=False)
            yield from _imports(node.orelse, module, at_import=at_import)
        else:
            inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for name in ("body", "orelse", "finalbody"):
                yield from _imports(getattr(node, name, []), module, at_import=inside)
            for part in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
                yield from _imports(part.body, module, at_import=inside)


def _base(node: ast.ImportFrom, module: str) -> str:
    package = module.removesuffix(".py").split("/")[: -node.level] if node.level else []
    return ".".join([*package, *filter(None, [node.module])])


def is_of(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def offences(modules: list[str], forbidden: tuple[str, ...], *, at_import_only: bool = False) -> list[str]:
    return [
        f"{module}:{found.line} imports {found.name}"
        for module in modules
        for found in imports(module)
        if any(is_of(found.name, name) for name in forbidden) and (found.at_import or not at_import_only)
    ]


def room_of(name: str) -> str:
    """The room of a module or of something in one: `tasks.judge` of `tasks.judge.rules.ACCEPT`."""
    return ".".join(name.split(".")[:2])


def dotted(module: str) -> str:
    return module.removesuffix(".py").replace("/", ".")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", [("torch", True)]),
        ("def f():\n    import torch", [("torch", False)]),
        ("class A:\n    import torch", [("torch", True)]),
        ("try:\n    pass\nexcept E:\n    import torch", [("torch", True)]),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import trl", [("torch", False), ("trl", True)]),
        ("from ..flows import run", [("flows.run", True)]),
        ("with a:\n    from torch.nn import Module", [("torch.nn.Module", True)]),
    ],
)
def test_the_reader_of_imports_sees_them_wherever_they_stand(tmp_path, monkeypatch, source, expected):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.py").write_text(source)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert [(found.name, found.at_import) for found in imports("tasks/toy.py")] == expected


def test_only_flows_import_prefect():
    assert offences([m for m in MODULES if m.startswith("tasks/")], ("prefect",)) == []
    assert offences(["flows/run.py"], ("prefect",)), "the reader of imports is blind: flows/run.py does import it"


def test_vllm_is_imported_only_by_what_its_server_loads():
    # It runs in the server's own environment, and none of our modules may import it.
    inside = "tasks/engines/vllm_cpu/grouped_lora.py"
    assert offences([module for module in MODULES if module != inside], ("vllm", "grouped_lora")) == []
    assert {found.name.split(".")[0] for found in imports(inside)} <= sys.stdlib_module_names | {"torch", "vllm"}


def test_heavy_libraries_are_imported_inside_functions_only():
    # lm-evaluation-harness loads this file itself, and only when it measures.
    light = [module for module in MODULES if module != "tasks/lab/benchmarks/items.py"]
    assert offences(light, HEAVY, at_import_only=True) == []
    allowed = tuple(name for name in HEAVY if name != "datasets")
    assert offences(["tasks/lab/benchmarks/items.py"], allowed, at_import_only=True) == []


def test_tasks_never_import_flows():
    assert offences([m for m in MODULES if m.startswith("tasks/")], ("flows",)) == []


def test_no_module_is_over_350_lines():
    lengths = {module: len((ROOT / module).read_text().splitlines()) for module in MODULES}
    assert {module: n_lines for module, n_lines in lengths.items() if n_lines > 350} == {}


def test_every_room_has_a_floor():
    rooms = {
        room_of(dotted(module)) for module in MODULES if module.count("/") > 1 or not module.endswith("__init__.py")
    }
    assert rooms == {room for floor in FLOORS for room in floor}


def test_no_room_imports_upward_or_sideways():
    floor_of = {room: i for i, floor in enumerate(FLOORS) for room in floor}
    upward = [
        f"{module}:{found.line} imports {found.name}"
        for module in MODULES
        for found in imports(module)
        if room_of(found.name) in floor_of
        and room_of(found.name) != (own := room_of(dotted(module)))
        and floor_of[room_of(found.name)] >= floor_of[own]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    known = {dotted(module).removesuffix(".__init__"): module for module in MODULES}
    graph = {
        name: {
            other
            for found in imports(module)
            for other in (found.name, found.name.rpartition(".")[0])
            # A package loads its modules, which say `from package.module import ...`: that is no circle of modules.
            if other in known and other != name and not known[other].endswith("__init__.py")
        }
        for name, module in known.items()
    }
    assert sum(map(len, graph.values())) > len(graph)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_flows_has_few_files_at_its_top():
    assert len(list((ROOT / "flows").glob("*.py"))) <= 5


def test_a_class_has_a_name_of_its_own():
    places: dict[str, list[str]] = {}
    for module in MODULES:
        for node in ast.parse((ROOT / module).read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert len(places) > 100
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_no_module_in_flows_has_the_name_of_a_library():
    # Prefect puts the folder of a flow's file first on the import path.
    installed = set(importlib.metadata.packages_distributions()) - {"flows", "tasks"}
    # Modules built into the interpreter (gc) are found before any path is looked at.
    standard = sys.stdlib_module_names - set(sys.builtin_module_names)
    taken = standard | installed | {"evaluate", "datasets", "docker", "select", "types", "vllm"}
    names = {path.stem for path in (ROOT / "flows").iterdir() if not path.name.startswith("__")}
    assert names
    assert names & taken == set()


def test_docker_holds_no_python():
    # With a Python file in it, `import docker` from the root of the project is no longer the Docker SDK.
    assert list((ROOT / "docker").rglob("*.py")) == []


def test_the_top_level_folders_are_the_agreed_ones():
    made = {"build", "dist"} | {path.name for path in ROOT.glob("*.egg-info")}  # ignored by git
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    # git keeps no empty folder, so `docker` is there only once it holds an image.
    assert folders - made <= {"flows", "tasks", "deployments", "tests", "docker"}


def test_packages_are_listed_by_name_and_none_is_missing():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert isinstance(listed, list), "packages must be listed, not searched for"
    there = {Path(module).parent.as_posix().replace("/", ".") for module in MODULES if module.endswith("__init__.py")}
    assert sorted(listed) == sorted(there)


def test_every_module_is_in_a_package_or_shipped_as_data():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {
        path.relative_to(ROOT).as_posix()
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    outside = [m for m in MODULES if not (ROOT / m).with_name("__init__.py").exists() and m not in shipped]
    assert outside == []


@pytest.mark.parametrize(
    ("modules", "more"), [("flows.cli.main", ("pyarrow",)), ("flows.rehearsal, flows.planning.reasons", ())]
)
def test_planning_and_help_load_neither_prefect_nor_a_gpu_stack(modules, more):
    heavy = (*HEAVY, "prefect", "vllm", *more)
    script = f"import sys, {modules}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
