"""Find the project in which a command runs, and make its five folders importable.

A project is a folder whose pyproject.toml has a `[tool.headrace]` table. Its folders `schemas/`, `features/`,
`pipelines/`, `learners/` and `serving/` are packages, so its root goes first on the import path: an installed package
of the same name is shadowed while a Headrace command runs.
"""

import difflib
import importlib
import os
import sys
import tomllib
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from headrace import stack_state
from headrace.errors import ConfigError, HeadraceError
from headrace.extras import missing_of
from headrace.stack_state import StackState

if TYPE_CHECKING:
    from headrace.learners import Learner
    from headrace.schemas import Event

T = TypeVar("T")

ENV_FILE = ".env"
FOLDERS = ("schemas", "features", "pipelines", "learners", "serving")


def find_root() -> Path:
    """The project's folder: the nearest one, from HEADRACE_PROJECT or else the working directory upward.

    Raises:
        ConfigError: none of these folders has a pyproject.toml with `[tool.headrace]`.
    """
    folders = _upward()
    for folder in folders:
        file = folder / "pyproject.toml"
        if file.is_file() and "headrace" in _tables(file):
            return folder
    raise ConfigError(
        f"{folders[0]} is not inside a Headrace project: no pyproject.toml with a [tool.headrace] table here or above. "
        "Change to your project, or make one with `headrace init DIR`."
    )


def _upward() -> list[Path]:
    """HEADRACE_PROJECT if set, else the working directory; then the folders above it."""
    here = Path(os.environ.get("HEADRACE_PROJECT") or Path.cwd()).resolve()
    return [here, *here.parents]


def _tables(file: Path) -> dict[str, Any]:
    """The `[tool.…]` tables of a pyproject.toml."""
    try:
        tables: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{file} cannot be read: {exc}") from exc
    return tables


def stack() -> StackState | None:
    """The services that `headrace up` runs, or ran, for this process's project; None if there are none, or no project.

    Raises:
        ConfigError: the file that describes them is damaged.
    """
    state = _nearest(stack_state.FOLDER)
    return stack_state.read_state(state) if state and state.is_dir() else None


def env_file() -> Path:
    """The `.env` of this process's project, or of the working directory; it need not exist."""
    return _nearest(ENV_FILE) or Path(ENV_FILE)


def _nearest(name: str | Path) -> Path | None:
    """The path `name` beside a pyproject.toml, in the nearest folder that has both; None if there is none."""
    for folder in _upward():
        if (folder / name).exists() and (folder / "pyproject.toml").is_file():
            return folder / name
    return None


def activate() -> Path:
    """Insert the project's root at the front of the import path and return it.

    Raises:
        ConfigError: there is no project, or one of its folders lacks `__init__.py` (same-named folders would merge).
    """
    root = find_root()
    for folder in FOLDERS:
        if (root / folder).is_dir() and not (root / folder / "__init__.py").is_file():
            raise ConfigError(
                f"{root / folder} has no __init__.py: create an empty one, so that imports find your modules"
            )
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))
    return root


def load_module(name: str) -> ModuleType:
    """Import `name`, a dotted module of the project.

    Raises:
        ConfigError: there is no such module, or its import fails; the message says where.
        HeadraceError: a declaration or setting in it is wrong.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(_no_module(name))
    try:
        return importlib.import_module(name)
    except HeadraceError:
        raise
    except ModuleNotFoundError as exc:
        missing = missing_of(exc)
        if missing is not None:
            raise missing from exc
        if exc.name is None or not (name == exc.name or name.startswith(exc.name + ".")):
            raise ConfigError(f"module {name} cannot be imported: {_fault(exc)}") from exc
        raise ConfigError(_no_module(name)) from exc
    except (Exception, SystemExit) as exc:
        raise ConfigError(f"module {name} cannot be imported: {_fault(exc)}") from exc


def _no_module(name: str) -> str:
    """The message for an unknown module, with the nearest name in the project."""
    root = Path(sys.path[0])
    there = [f"{folder}.{file.stem}" for folder in FOLDERS for file in (root / folder).glob("[!_]*.py")]
    return f"no module {name!r}: write it as folder.file, e.g. features.customer{_nearest_of(name, there)}"


def _nearest_of(name: str, names: Iterable[str]) -> str:
    """A "did you mean" question with the nearest of `names`, ignoring case; empty if none is near."""
    by_lower = {each.lower(): each for each in sorted(names)}
    near = difflib.get_close_matches(name.lower(), by_lower, 1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def _fault(exc: BaseException) -> str:
    """The error of a failed import, with the project's line that caused it, if there is one."""
    if isinstance(exc, SyntaxError):
        return f"{exc.filename}:{exc.lineno}: {exc.msg}"
    engine = str(Path(__file__).parent)
    ours = [frame for frame in traceback.extract_tb(exc.__traceback__) if not frame.filename.startswith(engine)]
    written = [frame for frame in ours if not frame.filename.startswith("<") and "site-packages" not in frame.filename]
    where = f"{written[-1].filename}:{written[-1].lineno}: " if written else ""
    return f"{where}{type(exc).__name__}: {exc}"


def load_object(reference: str, folder: str | None = None) -> Any:
    """Load the object that `module:name` names; for a bare name, the error suggests classes of the project's `folder`.

    Raises:
        ConfigError: the reference has no colon, or the module has no such name; the message lists its names.
        HeadraceError: see `load_module`.
    """
    module_name, colon, name = reference.partition(":")
    if not (colon and module_name and name):
        declared = subclasses_in(folder, object, Path(sys.path[0]))[0] if folder and not colon else []
        near = _nearest_of(reference, [each.__name__ for each in declared])
        places = [f"{each.__module__}:{each.__name__}" for each in declared if f" {each.__name__}?" in near]
        hint = f"; did you mean {places[0]}?" if places else ""
        raise ConfigError(f"{reference!r}: write module:name, e.g. features.customer:CustomerActivity{hint}")
    module = load_module(module_name)
    if not hasattr(module, name):
        public = sorted(key for key in vars(module) if not key.startswith("_"))
        raise ConfigError(f"{module_name} has no {name!r}; it has {', '.join(public)}{_nearest_of(name, public)}")
    return getattr(module, name)


def subclasses_in(folder: str, base: type[T], root: Path) -> tuple[list[type[T]], list[str]]:
    """The subclasses of `base` in the modules of a project folder, by name, and the errors of modules that fail.

    A module that cannot be imported does not hide the classes of others.
    """
    classes: dict[str, type[T]] = {}
    broken: list[str] = []
    for file in sorted((root / folder).glob("*.py")):
        if file.stem == "__init__":
            continue
        name = f"{folder}.{file.stem}"
        try:
            module = load_module(name)
        except KeyboardInterrupt:
            raise
        except ConfigError as exc:
            broken.append(str(exc))
            continue
        except BaseException as exc:  # noqa: BLE001 - a panic of a library too
            broken.append(f"module {name} cannot be imported: {_fault(exc)}")
            continue
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, base)
                and value is not base
                and value.__module__ == module.__name__
            ):
                classes[f"{module.__name__}:{value.__qualname__}"] = value
    return [classes[name] for name in sorted(classes)], broken


def events(root: Path) -> tuple[list[type["Event"]], list[str]]:
    """The project's event classes with a topic, by name, and the errors of modules that cannot be imported."""
    from headrace.schemas import Event

    declared, broken = subclasses_in("schemas", Event, root)
    return [event for event in declared if "topic" in event._declaration], broken  # noqa: SLF001


def event_named(name: str, root: Path) -> type["Event"]:
    """The project's event class `name`, or the class that `module:Class` names.

    Raises:
        ConfigError: there is no such class, or several; the message has the nearest names.
    """
    from headrace.schemas import Event, spec_of

    if ":" in name:
        chosen = _class_at(name, Event, "event", "class ...(Event, topic=...)")
        spec_of(chosen)
        return chosen
    declared, broken = events(root)
    return _named("event", name, [(event.__name__, event) for event in declared], broken, root / "schemas")


def _class_at(address: str, base: type[T], kind: str, declaration: str) -> type[T]:
    """The subclass of `base` at `module:Class`."""
    chosen = load_object(address)
    if not (isinstance(chosen, type) and issubclass(chosen, base)):
        raise ConfigError(f"{address} is no {kind}; name a class that is declared with `{declaration}`")
    return chosen


def learner_named(name: str, root: Path) -> type["Learner"]:
    """The project's learner with this class name or `name` attribute, or the class that `module:Class` names.

    Raises:
        ConfigError: there is no such learner, or several; the message has the nearest names.
    """
    from headrace.learners import Learner

    if ":" in name:
        return _class_at(name, Learner, "learner", "class ...(Learner)")
    declared, broken = subclasses_in("learners", Learner, root)
    by_name = [(name if learner.name == name else learner.__name__, learner) for learner in declared]
    return _named("learner", name, by_name, broken, root / "learners")


def _named(kind: str, name: str, declared: list[tuple[str, type[T]]], broken: list[str], folder: Path) -> type[T]:
    """The only class of that name; `broken` are the errors of modules that could not be imported."""
    classes = [value for other, value in declared if other == name]
    if len(classes) > 1:
        places = ", ".join(f"{value.__module__}:{value.__name__}" for value in classes)
        raise ConfigError(f"{kind} {name!r} is declared twice; write one of {places}")
    if not classes:
        names = sorted(other for other, _ in declared)
        hint = _nearest_of(name, names)
        unread = "".join(f"{fault}; " for fault in broken)
        where = "elsewhere in" if broken else "in"
        raise ConfigError(f"{unread}no {kind} {name!r} {where} {folder}; there are {', '.join(names) or 'none'}{hint}")
    return classes[0]
