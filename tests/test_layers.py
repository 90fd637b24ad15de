"""Everything in interleaf imports downwards only.

The table below is the house: which folder may import from which. An import for types alone, or inside a
function, counts as well, because it is knowledge of the other folder all the same.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import interleaf

PACKAGE = "interleaf"
SOURCE = Path(interleaf.__file__).parent

_KERNEL = ("runtime", "linux", "hw", "mm", "kvm", "designs", "properties", "scenarios", "bugs")


def _below(folder: str) -> frozenset[str]:
    return frozenset(_KERNEL[: _KERNEL.index(folder)])


# Folder (or module) of interleaf -> the others that it may import. Its own modules it may always import, and
# so may everything the package itself (for the version), which imports nothing of its own.
# The kernel's layers, from linux to bugs, know nothing of the search, of reports or of traces.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "__init__": frozenset(),
    "runtime": frozenset(),
    "explore": frozenset({"runtime"}),
    "linux": _below("linux"),
    "hw": _below("hw"),
    "mm": _below("mm"),
    "kvm": _below("kvm"),
    "designs": _below("designs"),
    "properties": _below("properties"),
    "scenarios": _below("scenarios"),
    "bugs": _below("bugs"),
    "ftrace": frozenset({*_KERNEL, "explore"}),
    "fuzz": frozenset({*_KERNEL, "explore"}),
    "check": frozenset({*_KERNEL, "explore"}),
    "worker": frozenset({*_KERNEL, "explore", "check"}),
    "campaign": frozenset({*_KERNEL, "explore", "check", "worker"}),
    "claims": frozenset({*_KERNEL, "explore", "check", "worker"}),
    "report": frozenset({*_KERNEL, "explore", "ftrace", "check", "worker", "claims"}),
}
# The command line's own modules, each above the one before.
MAY_IMPORT["arguments"] = frozenset(MAY_IMPORT)
MAY_IMPORT["checking"] = frozenset(MAY_IMPORT)
MAY_IMPORT["deciding"] = frozenset(MAY_IMPORT)
MAY_IMPORT["showing"] = frozenset(MAY_IMPORT)
MAY_IMPORT["fuzzing"] = frozenset(MAY_IMPORT)
MAY_IMPORT["tracing"] = frozenset(MAY_IMPORT)
MAY_IMPORT["listing"] = frozenset(MAY_IMPORT)
# These stand on top: they may import anything, and nothing below may import them.
MAY_IMPORT["pytest_plugin"] = frozenset(MAY_IMPORT)
MAY_IMPORT["cli"] = frozenset(MAY_IMPORT)
MAY_IMPORT["__main__"] = frozenset(MAY_IMPORT)


@dataclass(frozen=True)
class Breach:
    """An import that runs upwards, or a module that the table does not know."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


def _imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield the line and the absolute name of everything that a module of `package` imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(module=module, names=names, level=level):
                base = list(package[: len(package) - level + 1]) if level else []
                base += [module] if module else []
                for alias in names:
                    yield node.lineno, ".".join([*base, alias.name])
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def breaches(source: Path) -> list[Breach]:
    """Check every module of the package whose folder is `source`."""
    found = []
    top_level = {path.stem for path in source.glob("*.py")} | {path.name for path in source.iterdir()}
    for path in sorted(source.rglob("*.py")):
        inside = path.relative_to(source)
        file = (Path(PACKAGE) / inside).as_posix()
        home = inside.parts[0].removesuffix(".py")
        if home not in MAY_IMPORT:
            found.append(Breach(file, 1, f"'{home}' has no row in the table of tests/test_layers.py"))
            continue
        for line, name in _imports(ast.parse(path.read_text(), str(path)), (PACKAGE, *inside.parent.parts)):
            root, *rest = name.split(".")
            if root != PACKAGE or not rest or rest[0] == home:
                continue
            target = rest[0]
            if target in MAY_IMPORT or target in top_level:
                allowed = MAY_IMPORT[home]
            elif target == "*":
                allowed = frozenset()
            else:
                continue  # a name that the package itself defines, such as its version
            if target not in allowed:
                may = ", ".join(sorted(allowed)) or "nothing"
                found.append(Breach(file, line, f"{home} imports {name}, but may import only {may}"))
    return found


def _write(source: Path, modules: dict[str, str]) -> Path:
    for name, text in modules.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return source


def test_interleaf_imports_downwards_only() -> None:
    found = breaches(SOURCE)
    assert not found, "imports that run upwards:\n" + "\n".join(map(str, found))


def test_the_table_has_no_cycle() -> None:
    for folder, allowed in MAY_IMPORT.items():
        if folder in ("cli", "pytest_plugin", "__main__"):
            continue
        for lower in allowed:
            assert folder not in MAY_IMPORT[lower], f"{folder} and {lower} may import each other"
            assert MAY_IMPORT[lower] <= allowed, f"{folder} may import {lower}, but not all that {lower} may"


@pytest.mark.parametrize(
    ("module", "text", "line", "culprit"),
    [
        ("runtime/task.py", "import os\nimport interleaf.linux.rcu\n", 2, "interleaf.linux.rcu"),
        ("linux/rcu.py", "from interleaf.kvm import vm\n", 1, "interleaf.kvm.vm"),
        ("kvm/tdp/roots.py", "from interleaf import explore\n", 1, "interleaf.explore"),
        ("kvm/tdp/roots.py", "from ...report import html\n", 1, "interleaf.report.html"),
        ("kvm/vm.py", "from .. import designs\n", 1, "interleaf.designs"),
        ("hw/tlb.py", "def walk():\n    from interleaf.mm import page\n", 2, "interleaf.mm.page"),
        ("mm/page.py", "if TYPE_CHECKING:\n    import interleaf.kvm\n", 2, "interleaf.kvm"),
        ("explore/states.py", "import_module('interleaf.linux')\n", 1, "interleaf.linux"),
        ("explore/states.py", "importlib.import_module('interleaf.linux')\n", 1, "interleaf.linux"),
        ("scenarios/zap.py", "from interleaf.cli import main\n", 1, "interleaf.cli.main"),
        ("linux/__init__.py", "from interleaf import *\n", 1, "interleaf.*"),
        ("__init__.py", "from .runtime import task\n", 1, "interleaf.runtime.task"),
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, module: str, text: str, line: int, culprit: str) -> None:
    source = _write(tmp_path, {module: text})
    [breach] = breaches(source)
    home = module.split("/", maxsplit=1)[0].removesuffix(".py")
    expected = f"interleaf/{module}:{line}: {home} imports {culprit}, but may import only "
    assert str(breach).startswith(expected)


def test_a_folder_without_a_row_is_found(tmp_path: Path) -> None:
    source = _write(tmp_path, {"extras/__init__.py": ""})
    [breach] = breaches(source)
    assert str(breach).startswith("interleaf/extras/__init__.py:1: 'extras' has no row")


def test_downward_imports_are_let_through(tmp_path: Path) -> None:
    modules = {
        "kvm/tdp/roots.py": "from interleaf import __version__\nfrom interleaf.linux import rcu\n",
        "kvm/tdp/zap.py": "from . import roots\n",
        "kvm/vm.py": "import interleaf\nfrom ..runtime.task import Task\nfrom .tdp import roots\n",
        "cli.py": "from interleaf import explore, report, scenarios\n",
        "__main__.py": "from interleaf.cli import main\n",
    }
    assert breaches(_write(tmp_path, modules)) == []
