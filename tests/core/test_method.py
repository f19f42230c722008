"""The method contract: wrappers forward every question, and old names still work."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import nn

import deltakit as dk
from deltakit.core.method import Method, MethodWrapper, Paper, Role, Sum, can_be_summed
from deltakit.core.site import Site
from deltakit.errors import IncompatibleDeltas, InvalidConfig

PAPER = Paper(key="x2026", title="X", authors="X, Y", year=2026, venue="Z")
PLACEMENT = dk.Placement(
    site=Site.BLOCK_OUT, make_delta=lambda handle: None, insertion=dk.Insertion.SEQUENTIAL
)


class Pulse(dk.StepCallback):
    """Does nothing."""


PULSE = Pulse()


@dataclass(frozen=True, kw_only=True)
class Unusual(Method):
    """Answers each question as no method does by default."""

    width: int = 1

    paper = PAPER
    learning_rate = 0.125
    starts = dk.InitialOutput.ELSEWHERE

    def placements(self) -> tuple[dk.Placement, ...]:
        return (PLACEMENT,)

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        return name == "mine"

    def check_names(self, names: Sequence[tuple[str, ...]]) -> None:
        raise InvalidConfig("asked")

    def callbacks(self) -> tuple[dk.StepCallback, ...]:
        return (PULSE,)

    def deployed(self) -> Method:
        return replace(self, width=10)

    def summed(self, others: Sequence[Method]) -> Method:
        return replace(self, width=20 + len(others))

    def truncated(self, rank: int) -> Method:
        return replace(self, width=30 + rank)

    def sized(self, width: int) -> Method | None:
        return replace(self, width=40 + width)


def raised(method: Method) -> str:
    with pytest.raises(InvalidConfig) as caught:
        method.check_names(())
    return str(caught.value)


HOOKS: dict[str, Callable[[Method], Any]] = {
    "paper": lambda method: method.paper,
    "learning_rate": lambda method: method.learning_rate,
    "starts": lambda method: method.starts,
    "placements": lambda method: [placement.site for placement in method.placements()],
    "trains_base_parameter": lambda method: method.trains_base_parameter("mine", nn.Identity()),
    "check_names": raised,
    "callbacks": lambda method: method.callbacks(),
    "deployed": lambda method: method.deployed(),
    "summed": lambda method: method.summed([method]),
    "truncated": lambda method: method.truncated(3),
    "sized": lambda method: method.sized(4),
}
"""Each member of `Method` that a method overrides, and a question to it."""
FINAL = {"trains", "role"}
"""The old name of one of them; and what only baselines set, which nothing wraps."""


def members(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def test_every_member_of_a_method_is_forwarded_by_every_wrapper() -> None:
    asked = members(Method) - FINAL
    assert asked == HOOKS.keys(), "a member without a question, or a question without a member"
    missing = asked - members(MethodWrapper)
    assert not missing, f"MethodWrapper does not forward {sorted(missing)}"


def wrap_in_sum(method: Method) -> MethodWrapper:
    return Sum(parts=(method,))


def wrap_in_drop(method: Method) -> MethodWrapper:
    return dk.AdapterDrop(method, first=1)


@pytest.mark.parametrize("wrap", [wrap_in_sum, wrap_in_drop])
@pytest.mark.parametrize("hook", sorted(HOOKS.keys() - {"paper"}))
def test_a_wrapper_answers_as_what_it_wraps(
    wrap: Callable[[Method], MethodWrapper], hook: str
) -> None:
    inner = Unusual()
    expected, found = HOOKS[hook](inner), HOOKS[hook](wrap(inner))
    assert found == (wrap(expected) if isinstance(expected, Method) else expected)
    plain = HOOKS[hook](dk.BitFit()) if hook not in {"check_names"} else None
    assert expected != plain, "the question does not tell it from a plain method"


def test_papers_of_wrappers() -> None:
    assert wrap_in_sum(Unusual()).paper.arxiv == "2110.04366"
    assert wrap_in_drop(Unusual()).paper.arxiv == "2010.11918"

    @dataclass(frozen=True, kw_only=True)
    class Plain(MethodWrapper):
        @property
        def wrapped(self) -> tuple[Method, ...]:
            return (Unusual(),)

        def rewrapped(self, methods: tuple[Method, ...]) -> Method:
            return self

    assert Plain().paper is PAPER


def test_every_wrapper_of_the_library_is_one_by_type() -> None:
    def holds_methods(cls: type[Method]) -> bool:
        hints = inspect.get_annotations(cls)
        return any("Method" in str(hint) and "ClassVar" not in str(hint) for hint in hints.values())

    from deltakit.core.method import CLASSES, CombiningMethod

    wrappers = {n for n in CLASSES if holds_methods(CLASSES.get(n))}
    assert wrappers >= {"Sum", "AdapterDrop", "AdapterFusion"}
    for name in wrappers:
        assert issubclass(CLASSES.get(name), MethodWrapper | CombiningMethod), name


def test_mam_is_the_wrapper_of_its_two_parts() -> None:
    mam = dk.MAM(length=3, prefix_bottleneck=None, bottleneck=3)
    assert mam.placements() and mam.truncated(2) is mam and mam.summed([mam]) is mam
    assert dk.MAM().deployed() == dk.MAM().sum().deployed() != dk.MAM()
    assert mam.callbacks() == () and mam.starts is dk.InitialOutput.ELSEWHERE
    with pytest.raises(IncompatibleDeltas, match="length is 3 in one, 30 in another"):
        mam.summed([dk.MAM()])


def test_unset_class_variables_are_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bare(Method):
        pass

    assert Bare().starts is dk.InitialOutput.IDENTITY and Bare().role is Role.METHOD
    for name in ("paper", "learning_rate"):
        with pytest.raises(NotImplementedError, match=f"Bare names no `{name}`"):
            getattr(Bare(), name)


def test_what_can_be_summed_is_said_by_type() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bare(Method):
        pass

    assert not can_be_summed(Bare()) and not can_be_summed(dk.LoRA() + Bare())
    assert can_be_summed(Unusual()), "it says how by overriding `summed`"
    for spec in ("lora+bitfit", "mam", "adapterdrop[method=ia3]", "head", "full", "norms"):
        assert can_be_summed(dk.parse_method(spec)), spec


def test_the_old_keyword_of_a_placement() -> None:
    make: Any = lambda handle: None  # noqa: E731
    with pytest.warns(
        DeprecationWarning, match=r"Placement\(form=\) was renamed make_delta= on 2026-11-26"
    ):
        old: Any = dk.Placement(site=Site.EMBED, form=make, insertion=dk.Insertion.PARALLEL)  # type: ignore[call-arg]
    new = dk.Placement(site=Site.EMBED, make_delta=make, insertion=dk.Insertion.PARALLEL)
    assert old == new and replace(old, scale=2.0).make_delta is make
    with pytest.warns(DeprecationWarning, match=r"Placement\.form was renamed make_delta"):
        assert old.form is make
    with pytest.raises(TypeError):
        dk.Placement(site=Site.EMBED, insertion=dk.Insertion.PARALLEL)  # type: ignore[call-arg]


def test_the_old_name_of_a_method_that_trains_the_base() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"Old\.trains was renamed trains_base_parameter on 2026-11-26"
    ):

        @dataclass(frozen=True, kw_only=True)
        class Old(Method):
            def trains(self, name: str, owner: nn.Module) -> bool:
                return name == "bias"

    assert Old().trains_base_parameter("bias", nn.Identity())
    assert not Old().trains_base_parameter("weight", nn.Identity())
    with pytest.warns(DeprecationWarning, match=r"Method\.trains was renamed"):
        assert dk.BitFit().trains("a.bias", nn.Identity())
