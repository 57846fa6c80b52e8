"""What happens to workers in real life; named as a function to call there."""

from __future__ import annotations

import os
import signal
from typing import Any


def die(*_: Any) -> None:
    """The kernel kills the process, as it does where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
