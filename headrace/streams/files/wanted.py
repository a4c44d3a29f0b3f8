"""The columns to read from a file: those that an event declares, under any of their names, or all."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.schemas.event import EventSpec


@dataclass(frozen=True, slots=True)
class Wanted:
    """The columns to read from a file.

    `types`: column -> Polars type, under every name that a column may have. `fields`: names of each column, the current
    name first, and whether the file must have it; None: every column is read. `time_format` is the strptime format of
    times in a CSV that are not ISO 8601.
    """

    types: Mapping[str, Any]
    fields: tuple[tuple[tuple[str, ...], bool], ...] | None
    time_format: str | None = None

    @classmethod
    def of(cls, spec: EventSpec, given: Collection[str] = ()) -> "Wanted":
        """The declared columns of an event; the file may lack optional ones and those `given` by its folders."""
        names = {name: (name, *field.aliases) for name, field in spec.types.items()}
        fields = [(names[name], field.required and name not in given) for name, field in spec.types.items()]
        return cls({each: spec.polars[name] for name in names for each in names[name]}, tuple(fields))

    def among(self, names: Collection[str]) -> list[str] | None:
        """Columns to read from a file with columns `names`; None: all.

        All columns are also read if a required one is missing, so that the error can name those that exist.

        >>> Wanted({}, ((("a", "b"), True), (("c",), False))).among(["b", "d"])
        ['b']
        """
        if self.fields is None:
            return None
        present = [(next((each for each in field if each in names), None), needed) for field, needed in self.fields]
        if any(name is None and needed for name, needed in present):
            return None
        return [name for name, _ in present if name is not None]

    @property
    def asked(self) -> Collection[str] | None:
        """Columns whose type must be readable; None: all."""
        return None if self.fields is None else self.types.keys()
