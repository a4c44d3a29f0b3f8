"""Arguments of declared classes, as in `class Reading(Event, topic="readings")`."""

import difflib
from collections.abc import Iterable, Sequence

from headrace.errors import DeclarationError


def refuse_unknown(what: str, found: Iterable[str], known: Sequence[str]) -> None:
    """Return if there are no arguments beside the known ones; `what` names the class.

    Raises:
        DeclarationError: there is one; names the nearest known argument.
    """
    wrong = next(iter(found), None)
    if wrong is not None:
        near = difflib.get_close_matches(wrong, known, 1)
        hint = f"did you mean {near[0]}=? " if near else ""
        raise DeclarationError(f"{what}: no class argument {wrong}=; {hint}there are {', '.join(known)}")
