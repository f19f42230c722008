"""The laws that any delta keeps on any model: one function each, which raises AssertionError.

Where a law does not apply to a case, because the method is refused or the plain model itself does
not keep it, the function raises `NotApplicable` with the reason.
"""

import copy
import inspect
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import deltakit as dk
from deltakit.core.delta import AuxiliaryLoss, ReadsEnd
from deltakit.core.method import CombiningMethod, InitialOutput
from deltakit.errors import DeltakitError, InvalidConfig, NotMergeable
from deltakit.inject.attachments import Attachments, need_attachments
from deltakit.inject.base_names import head_names
from deltakit.testing.case import (
    WITHIN,
    Case,
    NotApplicable,
    close,
    distance,
    equal,
    gradients,
    run,
    trained,
)
from deltakit.testing.loops import LOOP_LAWS
from deltakit.testing.probes import assert_same, hook_count, reseed, snapshot
from deltakit.testing.states import STATE_LAWS
from deltakit.testing.wrappers import WRAPPER_LAWS

Law = Callable[[Case], None]

_NEAR = 0.05
"""How far from the base a small random start may be, of the size of the output."""


def check_refused_cleanly(case: Case) -> None:
    """A method that the model cannot have is refused in one line, and the model is as it was."""
    model = case.make()
    before = snapshot(model)
    try:
        case.attach(model)
    except DeltakitError as error:
        _one_line(error)
    else:
        raise NotApplicable("it is not refused")
    if not isinstance(case.method, CombiningMethod):
        assert_same(before, snapshot(model))


def check_start(case: Case) -> None:
    """At the start the output is the base's, exactly or nearly, as the method declares."""
    found, base = run(case.attached(), case.inputs), case.base
    match case.method.starts:
        case InitialOutput.IDENTITY:
            equal(found, base, "the method starts at the identity, the output does not")
        case InitialOutput.NEAR:
            close(found, base, "the method starts near the identity", within=_NEAR)
        case InitialOutput.ELSEWHERE:
            assert found.isfinite().all(), "the output at the start is not finite"
            assert not torch.equal(found, base), "the method starts elsewhere, the output does not"


def check_acts(case: Case) -> None:
    """With other values the method changes the output, which stays finite."""
    case.trains()
    found = run(case.random(), case.inputs)
    assert found.isfinite().all(), "the output is not finite"
    far = distance(found, case.base)
    assert far > 1e-4, f"random deltas change the output by no more than {far:.3g}"


def check_gradients(case: Case) -> None:
    """Gradients reach the deltas, the method's own values and the head, and nothing else."""
    case.trains()
    model = case.random().train()
    found = gradients(model, case.inputs)
    attachments = need_attachments(model)
    active = attachments.attached["default"]
    stray = found.keys() - {*active.own} - {n for n in found if n.startswith(_child(model))}
    assert not stray, f"parameters of the base or of a member received gradients: {sorted(stray)}"
    assert all(g.isfinite().all() for g in found.values()), "a gradient is not finite"
    received = {id(model.get_parameter(name)) for name in found}
    reached: dict[str, set[bool]] = {}
    for key, module in active.modules():
        stack = reached.setdefault(key.partition(".")[0], set())
        stack |= {id(parameter) in received for parameter in module.parameters()}
    partly = [stack for stack, seen in reached.items() if len(seen) > 1]
    assert found, "nothing received a gradient"
    assert not partly, f"some deltas in {', '.join(partly)} received no gradient"


def check_base_untouched(case: Case) -> None:
    """After training and `detach` the model is what it was, bit for bit, and leaves no trace."""
    model = case.make()
    before = snapshot(model)
    try:
        case.attach(model)
    except DeltakitError as error:
        raise NotApplicable(f"refused: {error}") from None
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    _train(model, case.inputs, _adam(model), range(2))
    for name, value in frozen.items():
        equal(model.get_parameter(name), value, f"training changed {name}, which is frozen")
    model.zero_grad(set_to_none=True)
    dk.detach(model.eval())
    assert_same(before, snapshot(model))


def check_disabled(case: Case) -> None:
    """Inside `disabled` the model is the base, bit for bit; behind it, the deltas are back."""
    base, before, model = case.base, snapshot(case.make()), case.random()
    with_deltas, flags = run(model, case.inputs), {*trained(model)}
    with dk.disabled(model):
        equal(run(model, case.inputs), base, "disabled")
        inside = snapshot(model)
        for part in ("state", "flags"):
            inside[part] = {k: v for k, v in inside[part].items() if not k.startswith("deltakit.")}
        assert inside["flags"] == before["flags"], "disabled: requires_grad is not the base's"
        assert inside["hooks"] == before["hooks"], "disabled: there are hooks left"
        assert before["config"].items() <= inside["config"].items(), "disabled: the config changed"
        for name, value in before["state"].items():
            equal(inside["state"][name], value, f"disabled: {name}")
    equal(run(model, case.inputs), with_deltas, "enabled again")
    assert {*trained(model)} == flags, "enabled again: other parameters are trained"
    dk.detach(model)
    equal(run(model, case.inputs), base, "detached")


def check_merge(case: Case) -> None:
    """Merged equals unmerged and `unmerge` gives all back, or it is refused and changes nothing."""
    model = case.random()
    expected, before = run(model, case.inputs), snapshot(model)
    try:
        report = dk.merge(model)
    except NotMergeable as error:
        _one_line(error)
        assert_same(before, snapshot(model))
        equal(run(model, case.inputs), expected, "after a merge that was refused")
        return
    if not report.folded:  # what is folded still runs at its sites
        assert hook_count(model) == hook_count(case.make()), "merged: there are hooks left"
    close(run(model, case.inputs), expected, "merged")
    dk.unmerge(model)
    equal(run(model, case.inputs), expected, "unmerged")
    assert_same(before, snapshot(model))


def check_padding(case: Case) -> None:
    """A row gives the same with padding and without: on the left of a decoder, or on the right."""
    if "attention_mask" not in case.inputs or "input_ids" not in case.inputs:
        raise NotApplicable("its inputs are not padded")
    model = case.random()
    side = "left" if _is_decoder(model) else "right"

    def pair(model: Any) -> tuple[Tensor, Tensor]:
        padded, alone = _padded(model, case.inputs, side)
        whole, expected = run(model, padded)[-1:], run(model, alone)
        if whole.shape == expected.shape:
            return whole, expected
        length = expected.shape[1]
        return (whole[:, -length:] if side == "left" else whole[:, :length]), expected

    _close_unless_the_base_is_not(case, pair, model, f"a row padded on the {side}")


def check_attention_implementations(case: Case) -> None:
    """SDPA equals eager."""
    model = case.random()

    def pair(model: Any) -> tuple[Tensor, Tensor]:
        model.set_attn_implementation("eager")
        eager = run(model, case.inputs)
        model.set_attn_implementation("sdpa")
        return run(model, case.inputs), eager

    try:
        _close_unless_the_base_is_not(case, pair, model, "SDPA")
    except ValueError as error:
        raise NotApplicable(str(error).splitlines()[0]) from None


def check_generation(case: Case) -> None:
    """Greedy generation with a cache equals generation without."""
    model = case.random()
    if any(isinstance(form, ReadsEnd) for form in model.modules()):
        raise NotApplicable("it changes a token otherwise when another follows")
    if not model.can_generate():
        raise NotApplicable("it does not generate")
    inputs = {k: v for k, v in case.inputs.items() if not k.startswith("decoder_")}
    if _is_decoder(model):
        inputs = _on_the_left(inputs)

    def pair(model: Any) -> tuple[Tensor, Tensor]:
        cached, plain = (_generate(model, inputs, use_cache=use) for use in (True, False))
        return cached, plain

    _close_unless_the_base_is_not(case, pair, model, "generation with a cache")


def check_resumed(case: Case) -> None:
    """Training that was saved and resumed, with its optimiser, equals uninterrupted training."""
    case.trains()
    whole, part, resumed = case.attached(), case.attached(), case.make()
    _train(whole, case.inputs, _adam(whole), range(2))
    optimiser = _adam(part)
    _train(part, case.inputs, optimiser, range(1))
    with tempfile.TemporaryDirectory() as folder:
        dk.save(part, folder)
        dk.load(resumed, folder)
    again = _adam(resumed)
    again.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    _train(resumed, case.inputs, again, range(1, 2))
    found, expected = trained(resumed), trained(whole)
    assert list(found) == list(expected), "resumed: other parameters are trained"
    for name, value in expected.items():
        equal(found[name], value, f"resumed: {name}")


def check_checkpointing(case: Case) -> None:
    """Gradient checkpointing, reentrant or not, gives the same gradients."""
    case.trains()
    model = case.random().train()
    if not model.supports_gradient_checkpointing:
        raise NotApplicable("the plain model has no gradient checkpointing")
    expected = gradients(model, case.inputs)
    for kind in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": kind})
        model.enable_input_require_grads()  # by itself it does so for tokens only
        found = gradients(model, case.inputs)
        assert found.keys() == expected.keys(), (
            f"use_reentrant={kind}: gradients missing: {sorted(expected.keys() ^ found.keys())}"
        )
        for name, value in expected.items():
            close(found[name], value, f"use_reentrant={kind}: the gradient of {name}")


def check_losses(case: Case) -> None:
    """A form's own loss is trained on once a pass: recomputed, scaled and in parts."""
    case.trains()
    model = case.random().train()
    parts = [module for module in model.modules() if isinstance(module, AuxiliaryLoss)]
    if not parts:
        raise NotApplicable("none of its forms has a loss that depends on the data")
    expected = gradients(model, case.inputs)
    once = gradients(model, case.inputs, weight=1024.0)
    for name, value in expected.items():
        close(once[name] / 1024.0, value, f"under a loss scale: the gradient of {name}")
    model.eval()
    task = gradients(model, case.inputs)
    far = max(distance(expected[name], task[name]) for name in expected)
    assert far > 1e-6, "the loss has no gradient in training"


def check_bf16(case: Case) -> None:
    """In bf16 each module, and the model, returns what the plain model's does: no upcast."""
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in case.inputs.items()}
    wanted = _dtypes(case.make().bfloat16(), inputs)
    model = case.make().bfloat16()
    try:
        case.attach(model)
    except DeltakitError as error:
        raise NotApplicable(f"refused: {error}") from None
    found = _dtypes(model, inputs)
    other = {
        name: found.get(name) for name in wanted if found.get(name, wanted[name]) != wanted[name]
    }
    assert not other, f"other dtypes than the plain model's: {other}"
    assert run(model, inputs).isfinite().all(), "the output in bf16 is not finite"


def check_dropped_layers(case: Case) -> None:
    """With the lowest layer dropped, no gradient flows below the lowest layer that has a delta."""
    dropped = Case(method=_without_the_first(case), make=case.make, inputs=case.inputs)
    model = dropped.random()
    attachments = need_attachments(model)
    if attachments.attached["default"].own.keys() - head_names(model):
        raise NotApplicable("it trains parameters of the base as well")
    if any(p.requires_grad for p in _before_all_layers(attachments)):
        raise NotApplicable("it has deltas before the first layer as well")
    stack = next(h.stack for h in attachments.handles.values() if h.in_a_layer)
    handles = [handle for handle in attachments.handles.values() if handle.stack == stack]
    flowing = _modules_with_gradient(model, case.inputs, {handle.module for handle in handles})
    layers = {handle.layer for handle in handles if handle.module in flowing}
    having = {
        attachments.handles[k].layer
        for k in attachments.attached["default"].leaves
        if k.startswith(stack)
    }
    assert layers, "no layer receives a gradient"
    assert min(layers) == min(having), f"gradients down to {min(layers)}, deltas to {min(having)}"


def check_compiles(case: Case) -> None:
    """`torch.compile` makes one graph of it, with the same output. Takes a second or more."""
    model = case.random()
    expected = run(model, case.inputs)
    try:
        found = _compiled(model, case.inputs)
    except Exception as error:
        _plain_compiles(case)
        raise AssertionError(f"torch.compile makes no single graph: {error}") from error
    close(found, expected, "compiled")


LAWS: tuple[Law, ...] = (
    check_refused_cleanly,
    check_start,
    check_acts,
    check_gradients,
    check_base_untouched,
    check_disabled,
    check_merge,
    check_padding,
    check_attention_implementations,
    check_generation,
    check_resumed,
    check_checkpointing,
    check_losses,
    check_bf16,
    check_dropped_layers,
    check_compiles,
    *LOOP_LAWS,
    *STATE_LAWS,
    *WRAPPER_LAWS,
)
"""All laws about one case; `check_loads_elsewhere` is about many at once."""


# -------------------------------------------------------------------------------------- the tools


def _one_line(error: Exception) -> None:
    message = str(error)
    assert message and "\n" not in message, f"the message is not one line: {message!r}"


def _child(model: Any) -> str:
    """What the names of the active delta's parameters begin with."""
    module = need_attachments(model).get_submodule("delta_default")
    return next(f"{name}." for name, each in model.named_modules() if each is module)


def _adam(model: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam([*trained(model).values()] or [torch.zeros(1)], lr=1e-3)


def _train(
    model: Any, inputs: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, steps: Iterable[int]
) -> None:
    model.train()
    for step in steps:
        reseed(step)
        gradients(model, inputs)
        optimiser.step()


def _close_unless_the_base_is_not(
    case: Case, pair: Callable[[Any], tuple[Tensor, Tensor]], model: Any, what: str
) -> None:
    """What the plain model itself does not keep cannot be asked of a delta on it."""
    found, expected = pair(model)
    if distance(found, expected) > WITHIN and distance(*pair(case.make())) > WITHIN:
        raise NotApplicable(f"{what} is not the same in the plain model either")
    close(found, expected, what)


def _is_decoder(model: Any) -> bool:
    return bool(model.can_generate()) and not model.config.is_encoder_decoder


def _on_the_left(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Text that is padded on the right, padded on the left."""
    mask = inputs["attention_mask"]
    return {
        key: torch.stack([v.roll(int((m == 0).sum())) for v, m in zip(value, mask, strict=True)])
        if value.shape == mask.shape
        else value
        for key, value in inputs.items()
    }


def _padded(
    model: Any, inputs: Mapping[str, Tensor], side: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch whose last row is padded, and that row alone without padding."""
    mask = inputs["attention_mask"]
    length = int(mask[-1].sum())
    if length == mask.shape[1]:
        raise NotApplicable("the last row of its inputs is not padded")
    alone = {k: v[-1:, :length] if v.shape == mask.shape else v[-1:] for k, v in inputs.items()}
    padded = _on_the_left(inputs) if side == "left" else dict(inputs)
    if side == "left" and "position_ids" in inspect.signature(model.forward).parameters:
        places = padded["attention_mask"].cumsum(-1) - 1
        padded["position_ids"] = places.clamp(min=0)
    return padded, alone


def _generate(model: Any, inputs: Mapping[str, Tensor], *, use_cache: bool) -> Tensor:
    """The scores of four new tokens, ``(4, rows, vocabulary)``."""
    from transformers import GenerationMixin

    result = GenerationMixin.generate(  # Whisper's own is about sound of any length
        model,
        **inputs,
        use_cache=use_cache,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(result.logits)


def _dtypes(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, list[torch.dtype]]:
    """The dtypes that each of the model's own modules returns."""
    found: dict[str, list[torch.dtype]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensors = (each for each in tree_leaves(output) if isinstance(each, Tensor))
            found[name] = [each.dtype for each in tensors]

        return hook

    for name, module in model.named_modules():
        if name.partition(".")[0] != "deltakit":
            module.register_forward_hook(watch(name))
    run(model, inputs)
    return found


def _without_the_first(case: Case) -> dk.Method:
    try:
        return dk.AdapterDrop(case.method, first=1)
    except InvalidConfig as error:
        raise NotApplicable(str(error)) from None


def _before_all_layers(attachments: Attachments) -> Iterator[nn.Parameter]:
    for key, module in attachments.attached["default"].modules():
        if not attachments.handles[key.partition("#")[0]].in_a_layer:
            yield from module.parameters()


def _modules_with_gradient(
    model: Any, inputs: Mapping[str, Tensor], modules: Iterable[nn.Module]
) -> set[nn.Module]:
    """Those of `modules` through whose output a gradient would flow."""
    found: set[nn.Module] = set()

    def hook(module: nn.Module, _args: Any, output: Any) -> None:
        if any(isinstance(each, Tensor) and each.requires_grad for each in tree_leaves(output)):
            found.add(module)

    for module in modules:
        module.register_forward_hook(hook)
    model(**inputs)
    return found


def _plain_compiles(case: Case) -> None:
    try:
        _compiled(case.make(), case.inputs)
    except Exception as error:
        raise NotApplicable(f"the plain model does not compile: {type(error).__name__}") from None


def _compiled(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    torch.compiler.reset()
    try:
        # The tracer without a code generator: what deltakit adds is traced, nothing is compiled.
        return run(torch.compile(model, fullgraph=True, backend="eager"), inputs)
    finally:
        torch.compiler.reset()
