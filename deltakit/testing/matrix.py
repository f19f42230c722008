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
    "hyperformer": "hyperformer[bottleneck=3,embedding=4,hidden=5]",
    "adamix": "adamix[experts=3,method=pfeiffer[bottleneck=3,placement=ffn]]",
    "molora": "molora[experts=3,method=lora[rank=2]]",
    "mov": "mov[experts=3]",
    "mola": "mola[experts=1/3,top=1,balance=0.1,method=lora[rank=2]]",
    "mixture": "mixture[experts=3,top=2,method=parallel[bottleneck=3]]",
    "mixture[route=sequence]": "mixture[experts=3,route=sequence,method=lora[rank=2]]",
    "invertible": "invertible",
    "invertible+adapter": "invertible[block=glow]+adapter[bottleneck=3]",
    "unipelt": "unipelt[method=prefix[length=3,bottleneck=4]+pfeiffer[bottleneck=3]+lora[rank=2]]",
    "gated": "gated[gate=token,method=lora[rank=2]+parallel[bottleneck=3]]",
    "moa": "moa[method=lora[rank=2,targets=q/down]+parallel[bottleneck=3]]",
    "sparse": "sparse[keep=0.5,method=pfeiffer[bottleneck=3]]",
    "sparse[method=lora]": "sparse[keep=0.5,score=synflow,method=lora[rank=2]]",
    "ia3": "ia3",
    "loreft": "loreft[rank=2,first=2,last=2]",
    "prefix": "prefix[length=3,bottleneck=4]",
    "prefix[bottleneck=none]": "prefix[length=3,bottleneck=none]",
    "prefix[positions=shifted]": "prefix[length=3,bottleneck=4,positions=shifted]",
    "prefix[positions=counted]": "prefix[length=3,bottleneck=4,positions=counted]",
    "prompt": "prompt[length=3]",
    "mam": "mam[length=3,prefix_bottleneck=4,bottleneck=3]",
    "adapterdrop": "adapterdrop[first=1,method=pfeiffer[bottleneck=3]]",
    "adapterdrop[random_up_to=1]": "adapterdrop[random_up_to=1,method=houlsby[bottleneck=3]]",
    "adapterdrop[method=prefix]": "adapterdrop[first=1,method=prefix[length=3,bottleneck=4]]",
    "bitfit": "bitfit",
    "norms": "norms",
    "partial": "partial[parameters=*.weight]",
    "head": "head",
    "full": "full",
    "prefix+lora+parallel": "prefix[length=10]+lora[rank=4]+parallel[bottleneck=32]",
    "fusion": "fusion[names=a/b,member=pfeiffer[bottleneck=3]]",
    "learned_mean": "learned_mean[names=a/b,member=lora[rank=2]]",
    "fusion[member=parallel]": "fusion[names=a/b,member=parallel[bottleneck=3]]",
    "fusion[member=lora]": "fusion[names=a/b,member=lora[rank=2]]",
}
"""What the page calls a method, and the method itself in the size of the tiny models."""

_PAGE = """\
# Methods and families

Which method runs on which family of models. The page is made by

```bash
python -m deltakit.testing.matrix > docs/methods-and-families.md
```

which attaches each method to a tiny model of each family and runs it: ✓ means that it works, a
number why it is refused. What a ✓ promises is what the [suite of laws](add-a-method.md#the-suite)
checks. A family goes by transformers' `model_type`; more types [share its layer](add-a-model.md).

{table}

{reasons}
"""


def subjects() -> dict[str, Method]:
    """The methods under test by what the page calls them: all of deltakit's own, some twice."""
    found = {label: parse_method(spec) for label, spec in _SPECS.items()}
    known = [METHODS.get(label).build() for label in _SPECS if label in METHODS]
    for name in METHODS:
        entry = METHODS.get(name)
        if entry.cls.__module__.startswith("deltakit.") and entry.build() not in known:
            found[name] = entry.build()
    return found


def refusal(case: Case) -> str | None:
    """The reason for refusing the method, in one line; None if it works."""
    try:
        model = case.attached()
    except NotApplicable as reason:
        kind = type(case.make()).__name__
        return str(reason).removeprefix("refused: ").replace(kind, "model")
    assert run(model, case.inputs).isfinite().all()
    return None


def matrix() -> dict[str, dict[str, str | None]]:
    """By family and method: why it is refused, or None if it works."""
    return {
        model_type: {
            label: refusal(Case.of(method, model_type)) for label, method in subjects().items()
        }
        for model_type in MODEL_TYPES
    }


def page(outcomes: Mapping[str, Mapping[str, str | None]]) -> str:
    """The table in Markdown, with the reasons below."""
    reasons = list(dict.fromkeys(why for row in outcomes.values() for why in row.values() if why))
    number = {why: str(index) for index, why in enumerate(reasons, start=1)}
    labels = list(next(iter(outcomes.values())))
    rows = [["", *(f"`{label}`" for label in labels)], ["---", *(":-:" for _ in labels)]]
    rows += [
        [f"`{family}`", *("✓" if why is None else number[why] for why in row.values())]
        for family, row in outcomes.items()
    ]
    return _PAGE.format(
        table="\n".join(f"| {' | '.join(row)} |" for row in rows),
        reasons="\n".join(f"{number[why]}. {why}" for why in reasons),
    )


if __name__ == "__main__":
    sys.stdout.write(page(matrix()))
