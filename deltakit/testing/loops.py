"""The laws of training loops: passes, deltas and flags in any order that a loop may have."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import deltakit as dk
from deltakit.errors import DeltakitError
from deltakit.inject.attachments import need_attachments
from deltakit.testing.case import (
    PAIR,
    Case,
    NotApplicable,
    close,
    equal,
    gradients,
    loss_of,
    run,
    trained,
)
from deltakit.testing.probes import reseed

Inputs = Mapping[str, Tensor]


def check_two_graphs(case: Case) -> None:
    """Two passes before one backward pass have the sum of their gradients, recomputed or not."""
    case.trains()
    model, batches = case.random(), (case.inputs, _first_row(case.inputs))
    apart = [gradients(model, batch) for batch in batches]
    together = _gradients_of_both(model, batches)
    for name, value in together.items():
        expected = sum((each[name] for each in apart if name in each), torch.zeros_like(value))
        close(value, expected, f"two graphs: the gradient of {name}")
    if model.supports_gradient_checkpointing:
        _recomputed_alike(model.train(), batches)


def _recomputed_alike(model: Any, batches: Sequence[Inputs]) -> None:
    expected = _gradients_of_both(model, batches)
    for kind in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": kind})
        model.enable_input_require_grads()  # by itself it does so for tokens only
        found = _gradients_of_both(model, batches)
        missing = sorted(expected.keys() ^ found.keys())
        assert not missing, f"two graphs, use_reentrant={kind}: gradients missing: {missing}"
        for name, value in expected.items():
            close(found[name], value, f"two graphs, use_reentrant={kind}: the gradient of {name}")


def _gradients_of_both(model: Any, batches: Sequence[Inputs]) -> dict[str, Tensor]:
    """The gradients of the sum of the batches' losses, from one backward pass."""
    model.zero_grad(set_to_none=True)
    losses = []
    for step, batch in enumerate(batches):
        reseed(step)
        losses.append(loss_of(model, batch))
    torch.stack(losses).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _first_row(inputs: Inputs) -> dict[str, Tensor]:
    return {key: value[:1] for key, value in inputs.items()}


def check_turns(case: Case) -> None:
    """One optimiser that trains two deltas in turns trains each as it is trained alone."""
    case.trains()
    start = case.pair()
    turns = _train_in_turns(copy.deepcopy(start), case.inputs, (*PAIR, *PAIR))
    for name in PAIR:
        alone = _values(_train_in_turns(copy.deepcopy(start), case.inputs, (name, name)), name)
        for key, value in _values(turns, name).items():
            equal(value, alone[key], f"in turns: {key} of {name!r}")


def _train_in_turns(model: Any, inputs: Inputs, names: Sequence[str]) -> Any:
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for name in names:
        dk.activate(model, name)
        gradients(model, inputs)
        optimiser.step()
    return model


def _values(model: Any, name: str) -> dict[str, Tensor]:
    """All that a delta has, by name."""
    attached = need_attachments(model).get(name)
    return {**dict(attached.tensors()), **attached.own}


def check_joint_loss(case: Case) -> None:
    """One loss over two deltas reaches each with the gradients of its own part, recomputed too."""
    case.trains()
    model = case.pair()
    expected = {name: _gradients_with(model, case.inputs, name) for name in PAIR}
    _reaches_each(model, case.inputs, expected, "a joint loss")
    if model.supports_gradient_checkpointing:
        model.train()
        expected = {name: _gradients_with(model, case.inputs, name) for name in PAIR}
        model.gradient_checkpointing_enable({"use_reentrant": False})
        _reaches_each(model, case.inputs, expected, "a joint loss, recomputed")


def _reaches_each(
    model: Any, inputs: Inputs, expected: Mapping[str, Mapping[str, Tensor]], what: str
) -> None:
    model.zero_grad(set_to_none=True)
    losses = []
    for name in PAIR:
        dk.activate(model, name)
        reseed(0)
        losses.append(loss_of(model, inputs))
    torch.stack(losses).sum().backward()
    for name in PAIR:
        for key, value in _values(model, name).items():
            found = torch.zeros_like(value) if value.grad is None else value.grad
            wanted = expected[name].get(key, torch.zeros_like(value))
            close(found, wanted, f"{what}: the gradient of {key} of {name!r}")


def _gradients_with(model: Any, inputs: Inputs, name: str) -> dict[str, Tensor]:
    dk.activate(model, name)
    gradients(model, inputs)
    return {k: v.grad.clone() for k, v in _values(model, name).items() if v.grad is not None}


def check_half_precision(case: Case) -> None:
    """On a base in half precision small steps are made, and a loss scale leaves all finite."""
    case.trains()
    for dtype in (torch.bfloat16, torch.float16):
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in case.inputs.items()}
        _computes(case.make().to(dtype), inputs)
        model = case.make().to(dtype)
        case.attach(model)
        _steps_are_made(model.train(), inputs, dtype)


def _computes(model: Any, inputs: Inputs) -> None:
    """Raises `NotApplicable` if the plain model is not finite in its dtype, or cannot run in it."""
    try:
        found = gradients(model.requires_grad_(True), inputs)
    except RuntimeError as error:
        raise NotApplicable(f"the plain model: {str(error).splitlines()[0]}") from None
    if not all(value.isfinite().all() for value in found.values()):
        raise NotApplicable(f"the plain model is not finite in {model.dtype}")


def _steps_are_made(model: Any, inputs: Inputs, dtype: torch.dtype) -> None:
    parameters = trained(model)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    _step_with_a_scale(model, inputs, dtype)
    for name, parameter in parameters.items():
        assert parameter.isfinite().all(), f"{dtype}: {name} is not finite after a step"
        if parameter.grad is None:
            continue
        stays = (parameter == before[name]) & (parameter.grad.abs() > 1e-4)
        assert not stays.any(), f"{dtype}: {int(stays.sum())} numbers of {name} make no small step"


def _step_with_a_scale(model: Any, inputs: Inputs, dtype: torch.dtype) -> None:
    """One small step; in fp16 with the largest scale of the loss under which nothing overflows."""
    optimiser = torch.optim.Adam(trained(model).values(), lr=1e-4)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=256.0, backoff_factor=1 / 16, enabled=dtype is torch.float16
    )
    for _ in range(3):
        optimiser.zero_grad(set_to_none=True)
        scale = scaler.get_scale()
        scaler.scale(loss_of(model, inputs)).backward()
        scaler.step(optimiser)
        scaler.update()
        if scaler.get_scale() >= scale:
            return


def check_flags(case: Case) -> None:
    """`requires_grad` flags stay as the user has set them, whatever is done in between."""
    model = case.pair()
    dk.activate(model, "default")
    for parameter in [*model.parameters()][::2]:
        if parameter.is_floating_point():
            parameter.requires_grad_(not parameter.requires_grad)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for what, act in _ACTS.items():
        try:
            act(model, case)
        except DeltakitError:
            continue
        now = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        other = [name for name, flag in flags.items() if now[name] is not flag]
        assert not other, f"{what}: flags are not as they were set: {other}"


def _look_at_the_base(model: Any, case: Case) -> None:
    with dk.disabled(model):
        run(model, case.inputs)
    run(model, case.inputs)


def _merge_and_unmerge(model: Any, case: Case) -> None:
    dk.merge(model)
    dk.unmerge(model)


def _drop_and_take_back(model: Any, case: Case) -> None:
    dk.drop(model, first=1)
    dk.drop(model)


def _use_another(model: Any, case: Case) -> None:
    for what in ("other", None, "default"):
        dk.activate(model, what)


_ACTS: dict[str, Callable[[Any, Case], None]] = {
    "disabled": _look_at_the_base,
    "merge, unmerge": _merge_and_unmerge,
    "drop": _drop_and_take_back,
    "activate": _use_another,
}

LOOP_LAWS = (check_two_graphs, check_turns, check_joint_loss, check_half_precision, check_flags)
"""The laws of this file."""
