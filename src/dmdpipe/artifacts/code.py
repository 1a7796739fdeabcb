"""The code that a step can reach, and its digest, definition by definition.

Reach is the static import closure, within the package, of the step's entry module and of the modules that its
spec selects. Imports inside functions count, imports for type checkers don't, and the ``__init__`` of every
package on the way does. The specs are left out, because what they decide stands in the spec's JSON, and the
errors, because they only talk. C counts with the module that it stands beside, as ``x.c`` beside ``x.py``, and so do
the headers that it includes; comments and spaces don't.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

import grimp
from grimp.exceptions import SourceSyntaxError

from dmdpipe.errors import UserError
from dmdpipe.files import read_ordinary
from dmdpipe.kernels.library import sources_of
from dmdpipe.specs.base import digest

LARGEST_SOURCE = 2**24  # bytes
LEFT_OUT = (["specs"], ["errors"])  # subpackages and modules at the top of the package


@dataclass(frozen=True)
class Code:
    """What a step can reach.

    Attributes:
        modules: by dotted name of the module, the digest of the normalised source of each of its definitions (see
            ``definitions``).
        libraries: top-level names of the packages outside the standard library that these modules import.
        digest: one digest for all modules.
    """

    modules: dict[str, dict[str, str]]
    libraries: tuple[str, ...]
    digest: str


class SourceTree:
    """The sources of one importable package, as they were when first looked at; nothing is executed.

    Raises:
        ModuleNotFoundError: if there is no such package.
    """

    def __init__(self, package: str):
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"no package {package!r}")
        self.package = package
        self.root = Path(next(iter(spec.submodule_search_locations)))
        self._codes: dict[tuple[str, ...], Code] = {}
        self._definitions: dict[str, dict[str, str]] = {}

    def reach(self, *modules: str) -> Code:
        """Return the code that these modules (dotted names) can reach, themselves included.

        Raises:
            ModuleNotFoundError: if one of them is not in the package.
            UserError: if some file of the package is not valid Python.
        """
        start = tuple(sorted(set(modules)))
        if start not in self._codes:
            self._codes[start] = self._reach(start)
        return self._codes[start]

    def read_all(self) -> None:
        """Read every module, so that whoever is forked from this process need not.

        Nor may they build another graph: the library's threads, who would, are not forked with them.

        Raises:
            UserError: if some file of the package is not valid Python.
        """
        for module in self._imports.modules:
            if self._is_ours(module):
                self._definitions_of(module)

    def _reach(self, start: tuple[str, ...]) -> Code:
        missing = [module for module in start if module not in self._imports.modules]
        if missing:
            raise ModuleNotFoundError(f"package {self.package!r} has no module {', '.join(missing)}")
        reached: set[str] = set()
        libraries: set[str] = set()
        waiting = list(start)
        while waiting:
            module = waiting.pop()
            if not self._is_ours(module):
                libraries.add(module.partition(".")[0])
            elif module not in reached and module.split(".")[1:2] not in LEFT_OUT:
                reached.add(module)
                waiting += self._imports.find_modules_directly_imported_by(module)
                waiting += filter(None, [module.rpartition(".")[0]])  # importing a.b.c runs a and a.b first
        modules = {module: self._definitions_of(module) for module in sorted(reached)}
        return Code(modules, tuple(sorted(libraries - sys.stdlib_module_names)), digest(modules))

    @cached_property
    def _imports(self) -> grimp.ImportGraph:
        try:
            return grimp.build_graph(
                self.package,
                include_external_packages=True,
                exclude_type_checking_imports=True,
                cache_dir=None,
            )
        except (SourceSyntaxError, OSError, ValueError) as error:
            raise _unreadable(error) from None

    def _is_ours(self, module: str) -> bool:
        return module == self.package or module.startswith(f"{self.package}.")

    def _definitions_of(self, module: str) -> dict[str, str]:
        if module not in self._definitions:
            path = self.root.joinpath(*module.split(".")[1:])
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            self._definitions[module] = _definitions_in(file) | _c_beside(file)
        return self._definitions[module]


def definitions(source: str) -> dict[str, str]:
    """Return the digest of each definition of a module: functions, methods as ``Class.method``, and the rest.

    Sources that differ only in comments, docstrings and formatting have the same digests. ``(module)`` stands for all
    statements outside of functions and classes and for the order of everything; ``Class`` for its own statements
    likewise. A name that is defined twice has the digest of both.
    """
    found: dict[str, list[object]] = {}
    _collect(ast.parse(source).body, "", found)
    return {name: digest(repr(skeletons)) for name, skeletons in sorted(found.items())}


def _collect(body: list[ast.stmt], owner: str, found: dict[str, list[object]]) -> None:
    rest: list[object] = []
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{owner}.{statement.name}" if owner else statement.name
            rest.append(name)
            if isinstance(statement, ast.ClassDef):
                _collect(statement.body, name, found)
                heading = ast.ClassDef(**{**dict(ast.iter_fields(statement)), "body": []})
                found[name].insert(0, _skeleton(heading))
            else:
                found.setdefault(name, []).append(_skeleton(statement))
        elif not _is_docstring(statement):
            rest.append(_skeleton(statement))
    found.setdefault(owner or "(module)", []).append(rest)


def _skeleton(node: object) -> object:
    """Return the syntax tree without its empty fields, as nested tuples and lists.

    ``ast.dump`` and ``ast.unparse`` won't do: from one Python to the next they change (new optional fields, other
    quotes in f-strings), and the digest must not.
    """
    if isinstance(node, ast.JoinedStr):  # Python 3.12 alone has empty pieces in f-strings
        return (
            "JoinedStr",
            [_skeleton(piece) for piece in node.values if getattr(piece, "value", None) != ""],
        )
    if isinstance(node, ast.AST):
        fields = [(name, _skeleton(value)) for name, value in ast.iter_fields(node)]
        return (type(node).__name__, *((name, value) for name, value in fields if value not in (None, [])))
    if isinstance(node, list):
        return [_skeleton(item) for item in node if not _is_docstring(item)]
    return node


def _is_docstring(node: object) -> bool:
    """Any text that stands alone as a statement: it does nothing, wherever it stands."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def own_sources() -> SourceTree:
    """Return the sources of dmdpipe, read once per process."""
    return SourceTree("dmdpipe")


def reach(modules: Iterable[str], script: str | None = None) -> Code:
    """Return the code of dmdpipe that these modules can reach.

    Args:
        modules: dotted names.
        script: name of a rule's script, which counts as code where dmdpipe lies in a checkout that has it.
    """
    code = own_sources().reach(*modules)
    name = f"workflow.scripts.{script}"
    path = own_sources().root.parents[1] / "workflow" / "scripts" / f"{script}.py"
    if script is None or not path.exists():
        return code
    every = {**code.modules, name: _definitions_of_script(path)}
    return Code(every, code.libraries, digest(every))


@cache
def _definitions_of_script(path: Path) -> dict[str, str]:
    return _definitions_in(path)


def _definitions_in(file: Path) -> dict[str, str]:
    try:
        return definitions(read_ordinary(file, LARGEST_SOURCE).decode())
    except (OSError, ValueError, SyntaxError, RecursionError) as error:
        raise _unreadable(error) from None


def _c_beside(file: Path) -> dict[str, str]:
    """Return the digest of the C file of a module's name and of what it includes, if there is one."""
    c_file = file.with_suffix(".c")
    if not c_file.exists():
        return {}
    try:
        return {
            source.name: digest(_without_comments(source.read_text(encoding="utf-8"))) for source in sources_of(c_file)
        }
    except (OSError, ValueError) as error:
        raise _unreadable(error) from None


def _without_comments(c_source: str) -> str:
    lines = re.sub(r"/\*.*?\*/|//[^\n]*", " ", c_source, flags=re.DOTALL).splitlines()
    # Only the preprocessor asks where a line ends.
    kept = ("\n" + line + "\n" if line.lstrip().startswith("#") else line for line in lines)
    return "\n".join(" ".join(line.split()) for line in " ".join(kept).splitlines())


def _unreadable(error: Exception) -> UserError:
    return UserError(f"the code cannot be read: {' '.join(str(error).split())}; mend that file")
