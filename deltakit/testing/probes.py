"""Test probes: what tests read in a model and write to it."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from deltakit.inject.attachments import need_attachments
from deltakit.testing.models import generator


def reseed(seed: int) -> None:
    """Seeds torch's generators; those of accelerators that are in use.

    For one that is not in use, `torch.manual_seed` notes the whole stack of the call, which takes
    milliseconds.
    """
    torch.default_generator.manual_seed(seed)
    for device in (torch.cuda, torch.xpu):
        if device.is_initialized():
            device.manual_seed_all(seed)


@torch.no_grad()
def randomise_deltas(model: Any, label: str = "deltas", std: float = 0.2) -> None:
    """Random values for the parameters of every attached delta (the head is left alone)."""
    draw = generator(label)
    for attached in need_attachments(model).attached.values():
        for _, tensor in attached.tensors():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * std)


@torch.no_grad()
def randomise_all(model: Any, label: str = "own") -> None:
    """Other values for all that attached deltas have, their own values of the base included."""
    draw = generator(label)
    for attached in need_attachments(model).attached.values():
        for tensor in (*attached.parameters(), *attached.own.values()):
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=draw))


@torch.no_grad()
def out(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The first tensor that the model returns."""
    return first(model(**batch))


def first(output: Any) -> Tensor:
    """The logits; without a head what comes first, which are the hidden states of most models."""
    return output.logits if "logits" in output else output[0]


def snapshot(model: Any) -> dict[str, Any]:
    """All that attaching must give back: values, order of keys, flags, hooks, modules, modes."""
    return {
        "state": {k: v.detach().clone() for k, v in model.state_dict().items()},
        "modules": [name for name, _ in model.named_modules()],
        "flags": {n: p.requires_grad for n, p in model.named_parameters()},
        "ids": {n: id(p) for n, p in model.named_parameters()},
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        "training": {n: m.training for n, m in model.named_modules()},
        "hooks": hook_count(model),
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
        "config": _configs(model),
    }


def _configs(model: nn.Module) -> dict[str, tuple[str, str | None]]:
    """Each module's configuration, and the attention that it names, which is not a public key.

    The kind of problem is left out: transformers writes it there with the first loss.
    """
    found = {name: vars(module).get("config") for name, module in model.named_modules()}
    return {
        name: (_without_problem(config), config._attn_implementation)
        for name, config in found.items()
        if config is not None
    }


def _without_problem(config: Any) -> str:
    given = config.to_dict()
    given.pop("problem_type", None)
    return json.dumps(given, sort_keys=True, default=str)


def hook_count(model: nn.Module) -> int:
    """The number of hooks of any kind on the model's modules."""
    return sum(
        len(value)
        for module in model.modules()
        for name, value in vars(module).items()
        if "hooks" in name and isinstance(value, dict)
    )


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Two snapshots are equal, bit for bit and in order."""
    for key in ("modules", "flags", "ids", "training", "hooks", "attributes", "config"):
        assert before[key] == after[key], key
    for key in ("state", "buffers"):
        assert list(before[key]) == list(after[key])
        for name, tensor in before[key].items():
            assert torch.equal(tensor, after[key][name]), name
