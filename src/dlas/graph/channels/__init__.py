"""Channels of a network that must leave together.

``groups`` finds them, ``remove`` takes them out, ``mask`` sets them to zero. A new operator is one function in
``arithmetic`` or ``movement`` that says how channel ids pass through it.
"""

from dlas.graph.channels.groups import (
    ChannelGroup,
    ChannelGroups,
    Entry,
    groups,
    mask,
    real_weight,
    remove,
    survivors,
)

__all__ = ["ChannelGroup", "ChannelGroups", "Entry", "groups", "mask", "real_weight", "remove", "survivors"]
