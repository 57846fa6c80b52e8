"""Ports of a component are made when it is built, so that no checker can know them: Amaranth counts as untyped."""

from typing import Any

def __getattr__(name: str) -> Any: ...
