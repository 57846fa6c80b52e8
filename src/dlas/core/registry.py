"""Families of interchangeable choices, found by walking the tree.

One member is one module (or one sub-package) inside a family's folder; the member's name is the module's name in
kebab case. Listing names imports nothing; describing or getting a member imports that module only. Files that start
with an underscore are private helpers of their folder. Third parties add members through the entry-point group
``dlas.<family>``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from dlas.core.errors import DlasError, UnknownNameError

T = TypeVar("T")
log = logging.getLogger("dlas")


class RegistryError(DlasError):
    """Two members claim one name, or a module does not register what its name promises."""

    exit_code = 3


class Registry(Generic[T]):
    """Members of one family, by name.

    Args:
        family: Singular noun of the family (``method``), used in messages and as entry-point group ``dlas.<family>``.
        packages: Dotted names of the folders whose modules are members. A name that ends in ``.*`` stands for every
            sub-package of that package.
    """

    def __init__(self, family: str, *packages: str) -> None:
        self.family = family
        self._packages = packages
        self._members: dict[str, T] = {}
        self._places: dict[str, str] | None = None

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that enters the member under ``name``; raises RegistryError when the name is taken."""

        def enter(member: T) -> T:
            known = self._members.get(name)
            if known is not None and _place(known) != _place(member):
                raise RegistryError(
                    f"{self.family} {name!r} is registered twice: by {_place(known)} and {_place(member)}"
                )
            self._members[name] = member
            return member

        return enter

    def names(self) -> list[str]:
        """Names of all members, sorted, without importing any of them."""
        return sorted({*self._discover(), *self._members})

    def get(self, name: str) -> T:
        """The member called ``name``; raises UnknownNameError with the closest names."""
        if name not in self._members:
            place = self._discover().get(name)
            if place is None:
                raise UnknownNameError(
                    self.family, name, self.names(), f"`dlas list` shows every {self.family}"
                )
            self._load(name, place)
        return self._members[name]

    def members(self) -> list[tuple[str, T]]:
        """All members that can be imported, by name; a broken plug-in is logged and left out."""
        found = []
        for name, member in self.survey():
            if not isinstance(member, Exception):
                found.append((name, member))
            elif isinstance(member, RegistryError) or not self._is_plugin(name):
                raise member
            else:
                log.warning("%s plug-in %r cannot be loaded: %s", self.family, name, member)
        return found

    def survey(self) -> list[tuple[str, T | Exception]]:
        """All members by name; in place of one that cannot be imported, why."""
        found: list[tuple[str, T | Exception]] = []
        for name in self.names():
            try:
                found.append((name, self.get(name)))
            except Exception as error:  # whatever the code of a member trips over
                found.append((name, error))
        return found

    def _is_plugin(self, name: str) -> bool:
        return self._discover()[name].startswith("entry point ")

    def _load(self, name: str, place: str) -> None:
        if place.startswith("entry point "):
            point = next(p for p in self._entry_points() if p.name == name)
            self._members[name] = point.load()
            return
        importlib.import_module(place)
        if name not in self._members:
            raise RegistryError(f"{place} does not register a {self.family} called {name!r}")

    def _discover(self) -> dict[str, str]:
        if self._places is None:
            places: dict[str, str] = {}
            for package in self._expand():
                for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
                    if not found.name.startswith("_"):
                        name = found.name.replace("_", "-")
                        if name in places:
                            raise RegistryError(
                                f"{self.family} {name!r} stands in {places[name]} and in {package}.{found.name}"
                            )
                        places[name] = f"{package}.{found.name}"
            for point in self._entry_points():
                places.setdefault(point.name, f"entry point {point.value}")
            self._places = places
        return self._places

    def _expand(self) -> list[str]:
        folders: list[str] = []
        for package in self._packages:
            if package.endswith(".*"):
                parent = package[:-2]
                folders += [
                    f"{parent}.{found.name}"
                    for found in pkgutil.iter_modules(importlib.import_module(parent).__path__)
                    if found.ispkg and not found.name.startswith("_")
                ]
            else:
                folders.append(package)
        return folders

    def _entry_points(self) -> list[importlib.metadata.EntryPoint]:
        return list(importlib.metadata.entry_points(group=f"dlas.{self.family}"))


def _place(member: object) -> str:
    return f"{getattr(member, '__module__', '?')}:{getattr(member, '__qualname__', member)}"
