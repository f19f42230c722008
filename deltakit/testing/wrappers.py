"""The laws of methods that put other forms at a method's placements: mixtures, gates, masks."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import deltakit as dk
from deltakit.core.delta import HasExperts
from deltakit.core.method import FormWrapper
from deltakit.inject.attachments import need_attachments
from deltakit.testing.case import Case, NotApplicable, close, equal, run


def check_plain(case: Case) -> None:
    """With its plain settings a wrapper is the method itself, bit for bit: one expert, all kept."""
    method = _wrapper(case)
    if not method.plain:
        raise NotApplicable("no settings make it the method itself")
    wrapped = dataclasses.replace(case, method=dataclasses.replace(method, **method.plain))
    itself = dataclasses.replace(case, method=method.method)
    settings = ", ".join(f"{name}={value}" for name, value in method.plain.items())
    equal(
        run(wrapped.random(), case.inputs),
        run(itself.random(), case.inputs),
        f"{type(method).__name__} with {settings} is not the method itself",
    )


@torch.no_grad()
def check_equal_experts(case: Case) -> None:
    """Experts that are equal are one of them, whatever a router says."""
    method, model = _wrapper(case), case.random()
    mixed = {key: form for key, form in _forms(model).items() if isinstance(form, HasExperts)}
    if not mixed:
        raise NotApplicable("it has no experts")
    itself = dataclasses.replace(case, method=method.method).random()
    plain = _forms(itself)
    for key, form in _forms(model).items():
        experts: nn.Module = mixed[key].stacked if key in mixed else form
        for name, parameter in experts.named_parameters():
            first = parameter[:1] if key in mixed else parameter
            parameter.copy_(first.expand_as(parameter))
            plain[key].get_parameter(name).copy_(first.view_as(plain[key].get_parameter(name)))
    close(run(model, case.inputs), run(itself, case.inputs), "equal experts are not one of them")


def check_deployed(case: Case) -> None:
    """The output stays when what only training needs is gone."""
    if case.method.deployed() == case.method:
        raise NotApplicable("it has nothing that only training needs")
    model = case.random()
    before = run(model, case.inputs)
    dk.deploy(model, "default")
    close(run(model, case.inputs), before, "deployed")


def _wrapper(case: Case) -> FormWrapper:
    if not isinstance(case.method, FormWrapper):
        raise NotApplicable("it wraps no method")
    return case.method


def _forms(model: Any) -> Mapping[str, nn.Module]:
    """The forms of the delta, by where they are."""
    return dict(need_attachments(model).get("default").modules())


WRAPPER_LAWS = (check_plain, check_equal_experts, check_deployed)
"""The laws of this file."""
