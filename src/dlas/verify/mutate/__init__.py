"""Mutation testing: would the rows and the paths at hand notice a wrong network or a wrong kernel?"""

from dlas.verify.mutate.engine import mutate
from dlas.verify.mutate.report import MutationReport

__all__ = ["MutationReport", "mutate"]
