"""Print the lowest version of every range in pyproject.toml, as constraints for pip (see `make lowest`)."""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
BOUND = re.compile(r"([A-Za-z0-9_-]+)(?:\[[^\]]*\])?>=([0-9.]+)")


def main() -> None:
    """One `name==bound` a line; requirements without a lower bound (the tools of `dev`) are left out."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *(one for name in extras for one in extras[name])]
    bounds = {match[1].lower(): match[2] for match in map(BOUND.match, requirements) if match}
    sys.stdout.writelines(f"{name}=={bound}\n" for name, bound in sorted(bounds.items()))


if __name__ == "__main__":
    main()
