"""Every method on every family: works, or refused because. Run it to print the page.

``python -m deltakit.testing.matrix > docs/methods-and-families.md``
"""

import sys
from collections.abc import Mapping

from deltakit import parse_method  # by the public door, behind which all methods are registered
from deltakit.core.method import METHODS, Method
from deltakit.testing.case import Case, NotApplicable, run
from deltakit.testing.models import MODEL_TYPES

_SPECS: dict[str, str] = {
    "houlsby": "houlsby[bottleneck=3]",
    "pfeiffer": "pfeiffer[bottleneck=3]",
    "parallel": "parallel[bottleneck=3]",
    "parallel[learned_scale=true]": "parallel[bottleneck=3,learned_scale=true]",
    "lora": "lora[rank=2]",
    "lora[targets=all]": "lora[rank=2,targets=all]",
    "lora[targets=embed]": "lora[rank=2,targets=embed]",
    "dora": "dora[rank=2]",
    "vera": "vera[rank=3]",
    "compacter": "compacter[bottleneck=4,n=2]",
    "compacter++": "compacter++[bottleneck=4,n=2]",
    "phm": "phm[bottleneck=4,n=2]",
    "invertible": "invertible",
    "invertible+adapter": "invertible[block=glow]+adapter[bottleneck=3]",
