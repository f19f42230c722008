"""A family with a site in the wrong place breaks a site law."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest

import deltakit as dk
from deltakit.arch.family import FAMILIES, LayerStack, Location, output
from deltakit.arch.resolve import family_of
from deltakit.core.site import Site
from deltakit.errors import DeltakitError
from deltakit.testing.case import NotApplicable
from deltakit.testing.sites import SITE_LAWS

Sites = dict[Site, Location]


@pytest.fixture
def clean() -> Iterator[None]:
    yield
    if "wrong" in FAMILIES:
        FAMILIES.remove("wrong")


def broken(model: Any, inputs: Mapping[str, Any]) -> str | None:
    """The first law that does not hold; None if all hold."""
    for law in SITE_LAWS:
        try:
            law(model, inputs)
        except NotApplicable:
            continue
        except AssertionError:
            return law.__name__
    return None


def with_sites(model: Any, change: Any) -> Any:
    """The model, with a family whose sites are changed."""

    def changed(stack: LayerStack) -> LayerStack:
        def sites(config: Any) -> Sites:
            found = stack.sites(config) if callable(stack.sites) else stack.sites
            return change(dict(found))

        return replace(stack, sites=sites)

    family = family_of(model)
    stacks = tuple(map(changed, family.stacks))
    if "wrong" in FAMILIES:
        FAMILIES.remove("wrong")
    FAMILIES.add("wrong", replace(family, name="wrong", model_types=("wrong",), stacks=stacks))
    model.config.model_type = "wrong"
    return model


def exchanged(one: Site, other: Site) -> Any:
    def change(sites: Sites) -> Sites:
        if one in sites and other in sites:
            sites[one], sites[other] = sites[other], sites[one]
        return sites

    return change


def places(model: Any) -> list[str]:
    return sorted(
        f"{h.key} {h.path} {h.hook_kind} {h.columns} {id(h.reader)}" for h in dk.resolve(model)
    )


EXCHANGED = ("bert", "gpt2", "llama", "opt", "gpt_neox", "bart")
ONE_IN = 4
"""Each family has one pair in four by default, others than the next one."""


@pytest.mark.parametrize("family", EXCHANGED[:-1])
def test_two_sites_exchanged_are_told(kit: SimpleNamespace, family: str, clean: None) -> None:
    first = EXCHANGED.index(family)
    assert exchanges_told(kit, family, slice(first % ONE_IN, None, ONE_IN)) > 40 // ONE_IN


@pytest.mark.slow
@pytest.mark.parametrize("family", EXCHANGED)
def test_any_two_sites_exchanged_are_told(kit: SimpleNamespace, family: str, clean: None) -> None:
    assert exchanges_told(kit, family, slice(None)) > 40


def exchanges_told(kit: SimpleNamespace, family: str, which: slice) -> int:
    """How many pairs of sites were exchanged, each of which broke a law."""
    model, inputs = kit.make_model(family), kit.make_inputs(family)
    right = places(model)
    tried = 0
    sites = sorted({h.site for h in dk.resolve(model) if h.in_a_layer})
    for pair in [*combinations(sites, 2)][which]:
        wrong = with_sites(kit.make_model(family), exchanged(*pair))
        try:
            if places(wrong) == right:  # two names of one place
                continue
        except DeltakitError:  # a site of columns, say, where no projection is
            continue
        tried += 1
        assert broken(wrong, inputs) is not None, pair
    return tried


@pytest.mark.parametrize(
    ("family", "site", "location"),
    [
        ("bert", Site.BLOCK_OUT, output("output.LayerNorm")),
        ("bert", Site.ATTN_OUT, output("attention.output.dropout")),
        ("bert", Site.FFN_OUT, output("output.dropout", reads="output.dense")),
        ("llama", Site.BLOCK_OUT, output("mlp")),
        ("llama", Site.FFN_OUT, output("mlp.down_proj")),
        ("llama", Site.FFN_STREAM, output("mlp", reads="input_layernorm")),
        ("gemma2", Site.ATTN_OUT, output("self_attn.o_proj", reads="self_attn.q_proj")),
    ],
)
def test_a_site_in_another_module_is_told(
    kit: SimpleNamespace, family: str, site: Site, location: Location, clean: None
) -> None:
    model = with_sites(kit.make_model(family), lambda sites: {**sites, site: location})
    assert broken(model, kit.make_inputs(family)) is not None


@pytest.mark.parametrize("site", [Site.ATTN_KV, Site.FFN_UP, Site.ATTN_K])
def test_a_site_that_is_left_out_is_told(kit: SimpleNamespace, site: Site, clean: None) -> None:
    def without(sites: Sites) -> Sites:
        del sites[site]
        return sites

    model = with_sites(kit.make_model("bert"), without)
    try:
        found = broken(model, kit.make_inputs("bert"))
    except (DeltakitError, KeyError):
        return
    assert found is not None


def test_self_attention_and_attention_across_exchanged_are_told(
    kit: SimpleNamespace, clean: None
) -> None:
    model = kit.make_model("bart")
    family = family_of(model)
    by_name = {stack.name: stack for stack in family.stacks}
    across, own = by_name["cross"].sites, by_name["decoder"].sites
    assert isinstance(across, Mapping) and isinstance(own, Mapping)
    attention = {site: own[site] for site in across}
    stacks = (
        by_name["encoder"],
        replace(by_name["decoder"], sites={**own, **across}),
        replace(by_name["cross"], sites=attention),
    )
    FAMILIES.add("wrong", replace(family, name="wrong", model_types=("wrong",), stacks=stacks))
    model.config.model_type = "wrong"
    assert broken(model, kit.make_inputs("bart")) == "check_self_and_cross"
