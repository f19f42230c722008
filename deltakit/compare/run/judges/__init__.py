"""Judges: other libraries that score the rows of a run on tasks of their own.

A judge is one file in this folder, or in a package of your own. Nothing of its library is imported
before it is asked.
"""

from deltakit.compare.run.judges.base import JUDGES, Judge, JudgedModel, Questions, register_judge
from deltakit.compare.run.judges.lm_eval import LmEval
from deltakit.compare.run.judges.mteb import Mteb

__all__ = ["JUDGES", "Judge", "JudgedModel", "LmEval", "Mteb", "Questions", "register_judge"]
