"""A way to repair a converted network."""

from __future__ import annotations

from dlas.core.options import Configurable
from dlas.core.registry import Registry
from dlas.verify.repair.job import Job, Mended

strategies: Registry[type[Strategy]] = Registry("repair-strategy", "dlas.verify.repair.strategies")


class Strategy(Configurable):
    """Changes a target until it answers as its source does."""

    def mend(self, job: Job) -> Mended:
        """Work until nothing is left to do or the budget of ``job`` is spent; the job's target is not changed."""
        raise NotImplementedError
