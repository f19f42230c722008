"""No backward pass enters the layers below the lowest active delta."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.testing.models import kind_of


def adapterdrop(kit: SimpleNamespace, family: str) -> Any:
    return attached(kit, family, dk.AdapterDrop(dk.SequentialAdapter(reduction=4), first=1))


def upper_lora(kit: SimpleNamespace, family: str) -> Any:
    return attached(kit, family, dk.AdapterDrop(dk.LoRA(rank=2), layers=0))


def attached(kit: SimpleNamespace, family: str, method: dk.Method) -> Any:
    model = kit.make_model(family, kind_of(family))
    dk.attach(model, method)
    kit.randomise_deltas(model)
    return model


def dropped_fusion(kit: SimpleNamespace, family: str) -> Any:
    model = kit.make_model(family, kind_of(family))
    kit.attach_fusion(model)
    dk.drop(model, first=1)
    return model


def head(kit: SimpleNamespace, family: str) -> Any:
    model = kit.make_model(family, "classify")
    dk.attach(model, dk.HeadOnly())
    return model


def entered(model: Any, batch: dict[str, Any]) -> set[int]:
    """The layers of the first stack whose outputs a backward pass reaches."""
    handles = [handle for handle in kit_handles(model) if handle.in_a_layer]
    blocks = {h.layer: h.block for h in handles if h.stack == handles[0].stack}
    reached = set[int]()

    def watch(layer: int) -> Callable[..., None]:
        def look(module: Any, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if states.requires_grad:
                states.register_hook(lambda _: reached.add(layer))

        return look

    hooks = [block.register_forward_hook(watch(layer)) for layer, block in blocks.items()]
    output = model.train()(**batch)
    (output.logits if "logits" in output else output[0]).square().mean().backward()
    for hook in hooks:
        hook.remove()
    return reached


def kit_handles(model: Any) -> list[Any]:
    return list(model.deltakit.handles.values())


UPPER = {"adapterdrop": adapterdrop, "upper lora": upper_lora, "dropped fusion": dropped_fusion}
FAMILIES = ("bert", "llama", "t5", "vit")
CHECKPOINTING = {"kept": None, "recomputed": False, "reentrant": True}


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("case", UPPER)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_lowest_layer_is_not_entered(
    kit: SimpleNamespace, family: str, case: str, checkpointing: str
) -> None:
    model = UPPER[case](kit, family)
    plain = UPPER[case](kit, family)
    batch = kit.make_inputs(family, kind_of(family))
    kind = CHECKPOINTING[checkpointing]
    if kind is not None:
        model.activation_checkpointing_enable({"use_reentrant": kind})
        model.disable_input_require_grads()
    assert entered(model, batch) == entered(plain, batch) == {1}
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, msg=name)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_a_head_alone_enters_no_layer(
    kit: SimpleNamespace, family: str, checkpointing: str
) -> None:
    model = head(kit, family)
    kind = CHECKPOINTING[checkpointing]
    if kind is not None:
        model.activation_checkpointing_enable({"use_reentrant": kind})
        model.disable_input_require_grads()
    assert entered(model, kit.make_inputs(family, "classify")) == set()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_transformers_asks_of_the_embeddings_is_cut_inside_a_kept_trunk(
    kit: SimpleNamespace, family: str
) -> None:
    model, batch = adapterdrop(kit, family), kit.make_inputs(family, kind_of(family))
    model.enable_input_require_grads()
    assert entered(model, batch) == {0, 1}
    below = list[int]()

    def look(module: Any, args: Any, output: Any) -> None:
        output.register_hook(lambda _: below.append(1))

    model.get_input_embeddings().register_forward_hook(look)
    with dk.kept_trunk(model):
        for _ in range(2):
            output = model(**batch)
            output.logits.square().mean().backward()
    assert not below
