"""The layout of the engine: no import circles, small folders, few parameters, one home for each library, plain words.

Each rule yields its offences; there are to be none.
"""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

MODULES_MAX = 16
"""Modules of one folder."""
POSITIONAL_MAX = 8
KERNEL_PARAMETERS_MAX = 10
KERNEL_DECORATORS = {"kernel", "lean_kernel", "part"}
BANNED_NAMES = {"found", "told", "held"}
"""Bare participles: a name says what it holds."""
BANNED_OPENINGS = re.compile(r"The same|(As|Have|Let|Call)\b")
"""Openings of docstrings that cannot be read alone."""
HOMES = {
    "bytewax": ("pipelines/on_bytewax.py",),
    "ray": ("serving/on_ray.py",),
    "redis": ("features/store/client.py", "local/"),
}

ENGINE = Path(__file__).resolve().parents[2] / "headrace"
FILES = sorted(ENGINE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[Path, Function]]:
    for path, tree in TREES.items():
        yield from ((path, node) for node in ast.walk(tree) if isinstance(node, Function))


def is_kernel(function: Function) -> bool:
    """Whether it is compiled: decorated by one of ours."""
    names = (node.func if isinstance(node, ast.Call) else node for node in function.decorator_list)
    return any(isinstance(name, ast.Name) and name.id in KERNEL_DECORATORS for name in names)


def positional_count(function: Function) -> int:
    """Parameters that can be given by position, without `self` and `cls`."""
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def kernel_parameters() -> Iterator[tuple[Path, str]]:
    for path, function in functions():
        if is_kernel(function) and positional_count(function) > KERNEL_PARAMETERS_MAX:
            yield path, f"{function.name} has {positional_count(function)} parameters"


def python_parameters() -> Iterator[tuple[Path, str]]:
    for path, function in functions():
        if not is_kernel(function) and positional_count(function) > POSITIONAL_MAX:
            yield path, f"{function.name} has {positional_count(function)} positional parameters"


def banned_names() -> Iterator[tuple[Path, str]]:
    """Names of parameters and local variables; attributes of classes are part of wire formats."""
    for path, tree in TREES.items():
        fields = {
            id(line.target)
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for line in node.body
            if isinstance(line, ast.AnnAssign)
        }
        for node in ast.walk(tree):
            is_stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields
            name = node.arg if isinstance(node, ast.arg) else node.id if is_stored else None
            if name in BANNED_NAMES:
                yield path, f"line {node.lineno}: {name}"


def banned_openings() -> Iterator[tuple[Path, str]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | Function):
                words = ast.get_docstring(node) or ""
                if BANNED_OPENINGS.match(words):
                    yield path, f"{getattr(node, 'name', 'module')}: {words.splitlines()[0]}"


def large_folders() -> Iterator[tuple[Path, str]]:
    for folder in sorted({path.parent for path in FILES}):
        count = sum(1 for path in folder.glob("*.py") if path.name != "__init__.py")
        if count > MODULES_MAX:
            yield folder / "__init__.py", f"{folder.relative_to(ENGINE.parent)} has {count} modules"


def modules_without_home() -> Iterator[tuple[Path, str]]:
    for path, tree in TREES.items():
        place = str(path.relative_to(ENGINE))
        for package in {name.partition(".")[0] for name, _ in imports_of(tree)} & set(HOMES):
            if not place.startswith(HOMES[package]):
                yield path, f"{place} imports {package}"


def imports_of(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Modules that a file imports, anywhere in it, and the names it takes from each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


def import_graph() -> dict[str, set[str]]:
    """The modules of `headrace` that each one imports, type checking and late imports included.

    A name taken from a folder's `__init__` is followed to the module that defines it: the list of a room's names is no
    link between all of its modules. The root's own list, which imports on demand, is left out.
    """
    names = {
        ".".join(path.relative_to(ENGINE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    exported: dict[str, dict[str, str]] = defaultdict(dict)
    for name, path in names.items():
        if path.name == "__init__.py":
            for module, taken in imports_of(TREES[path]):
                exported[name].update(dict.fromkeys(taken, module))
    graph: dict[str, set[str]] = defaultdict(set)
    for name, path in names.items():
        if path.name == "__init__.py":
            continue
        for module, taken in imports_of(TREES[path]):
            for one in taken or [""]:
                target = module
                while one in exported[target] and exported[target][one] != target:
                    target = exported[target][one]
                target = f"{target}.{one}" if f"{target}.{one}" in names else target
                if target in names and names[target].name != "__init__.py":
                    graph[name].add(target)
    return graph


def import_circles() -> Iterator[tuple[Path, str]]:
    """Groups of modules each of which reaches all others (strongly connected components, by reachability)."""
    graph = import_graph()
    reached = {name: _reached(name, graph) for name in graph}
    seen: set[str] = set()
    for name in sorted(graph):
        circle = {other for other in reached[name] if name in reached.get(other, ())}
        if circle and name not in seen:
            seen |= circle
            yield ENGINE.parent / (name.replace(".", "/") + ".py"), " <-> ".join(sorted(circle))


def _reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    """Modules that `start` leads to; itself only by a circle."""
    reached: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += graph.get(name, ())
    return reached


def aggregations_without_example() -> Iterator[tuple[Path, str]]:
    exported = [name for _, names in imports_of(TREES[ENGINE / "features/aggregations/__init__.py"]) for name in names]
    for path, tree in TREES.items():
        for node in ast.walk(tree) if path.parent.name == "aggregations" else ():
            if (
                isinstance(node, ast.ClassDef)
                and node.name in exported
                and ">>> " not in (ast.get_docstring(node) or "")
            ):
                yield path, f"{node.name} has no doctest"


RULES = {
    "import circles": import_circles,
    "modules of a folder": large_folders,
    "positional parameters": python_parameters,
    "parameters of kernels": kernel_parameters,
    "one home for a library": modules_without_home,
    "examples of aggregations": aggregations_without_example,
    "names": banned_names,
    "openings of docstrings": banned_openings,
}


@pytest.mark.parametrize("rule", RULES)
def test_rule_holds_everywhere(rule):
    assert [f"{path.relative_to(ENGINE.parent)}: {words}" for path, words in RULES[rule]()] == []


def test_rules_see_offences():
    """The counts are of something: the rules find kernels, functions, imports and docstrings."""
    kernels = [function for _, function in functions() if is_kernel(function)]
    assert len(kernels) > 100
    assert max(map(positional_count, kernels)) > 2
    graph = import_graph()
    assert "headrace.features.view" in graph["headrace.features.store.store"]
    homes = Counter(name for tree in TREES.values() for name, _ in imports_of(tree) if name.partition(".")[0] in HOMES)
    assert {name.partition(".")[0] for name in homes} == set(HOMES)
    assert BANNED_OPENINGS.match("The same in one line.")
    assert not BANNED_OPENINGS.match("Assemble the inputs.")
