"""Who owns a view's name in a store: the class that keeps its records, so that another of the name cannot replace them.

    <ns>:owners      view name -> module:Class that first wrote under it

A class that was changed is still the owner, and its new version is built beside the old one. Another class of the name
is refused, unless its records are the same to the byte: then it is the same view under a new address, and becomes the
owner. A class that moved and changed at once takes the name over with `headrace features adopt`.
"""

from headrace.errors import LayoutError
from headrace.features.store.client import RedisLink
from headrace.features.view import ViewPlan

_SCRIPT = "__main__"
"""Module of a class whose file is run as a script, whatever its name is when it is imported."""


class ViewOwners:
    """The owners of one namespace."""

    def __init__(self, link: RedisLink, namespace: str) -> None:
        self._link = link
        self._key = f"{namespace}:owners"

    def of(self, view_name: str) -> str | None:
        """`module:Class` of the owner, None if nobody wrote under the name yet.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        with self._link.errors(f"reading the owner of {view_name}"):
            found: bytes | None = self._link.client.hget(self._key, view_name)
        return None if found is None else found.decode()

    def claim(self, plan: ViewPlan, active: str | None) -> None:
        """Make the view's class the owner of its name, or raise if it must not be; `active` is the version of readers.

        Raises:
            LayoutError: another class owns the name, and its records are not the same.
            StoreUnavailableError: Redis does not answer.
        """
        with self._link.errors(f"claiming {plan.name}"):
            self._link.client.hsetnx(self._key, plan.name, plan.declared_in)
        owner = self.of(plan.name) if active == plan.fingerprint else self.require(plan)
        if owner != plan.declared_in and not plan.declared_in.startswith(_SCRIPT):
            self.adopt(plan)

    def require(self, plan: ViewPlan) -> str | None:
        """The owner of the view's name, which is the view's class, or nobody.

        Raises:
            LayoutError: another class owns the name.
            StoreUnavailableError: Redis does not answer.
        """
        owner = self.of(plan.name)
        if owner is None or _is_same(owner, plan.declared_in):
            return owner
        raise LayoutError(
            f"view {plan.name}: {self._link.shown_url} has records of {owner} under this name, and {plan.declared_in} "
            'is another view, which would replace them. Give one of the two another name="..." in its class '
            f"arguments; or, if the class was moved or renamed, run `headrace features adopt {plan.declared_in}`"
        )

    def adopt(self, plan: ViewPlan) -> None:
        """Make the view's class the owner of its name, whoever was.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        with self._link.errors(f"adopting {plan.name}"):
            self._link.client.hset(self._key, plan.name, plan.declared_in)


def _is_same(owner: str, declared_in: str) -> bool:
    """Whether both may be addresses of one class, one of them that of a script."""
    (module, _, name), (other_module, _, other_name) = owner.partition(":"), declared_in.partition(":")
    return name == other_name and (module == other_module or _SCRIPT in (module, other_module))
