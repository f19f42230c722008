"""Bases that several processes hold in parts: right, or refused in one line."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import deltakit as dk
from deltakit.core.composition import One
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attachments import attachments_of
from deltakit.inject.partitions import wrapper_of

SWITCHES = ("activate", "using", "disabled", "detach")


def switch(model: Any, act: str) -> None:
    """Takes the active delta's own values off in one of the ways to do so."""
    if act == "activate":
        dk.activate(model, "b")
    elif act == "detach":
        dk.detach(model)
    else:
        with dk.disabled(model) if act == "disabled" else dk.using(model, "b"):
            pass


def flatten(model: nn.Module) -> None:
    """Marks as FullyShardedDataParallel leaves them, and a flat piece of a table."""
    for module in model.modules():
        module._is_fsdp_managed_module = True  # type: ignore[assignment]
        module._fsdp_use_orig_params = True  # type: ignore[assignment]
    for parameter in model.parameters():
        vars(parameter)["_fsdp_flattened"] = True
        parameter.data = parameter.data.flatten()[:7]


def partition(model: nn.Module) -> None:
    """Parameters as DeepSpeed ZeRO-3 leaves them between passes."""
    for index, parameter in enumerate(model.parameters()):
        vars(parameter).update(ds_id=index, ds_numel=parameter.numel())
        parameter.data = parameter.data.new_empty(0)


def two(kit: SimpleNamespace, spec: str, head: str = "classify") -> Any:
    model = kit.make_model("bert", head)
    for name in ("b", "a"):
        dk.attach(model, dk.parse_method(spec), name)
    return model


@pytest.mark.parametrize("wrap", [flatten, partition])
@pytest.mark.parametrize("act", SWITCHES)
def test_own_values_are_not_exchanged_in_flat_parts(
    kit: SimpleNamespace, wrap: Any, act: str
) -> None:
    model = two(kit, "lora")
    before = {name: id(p) for name, p in model.named_parameters()}
    wrap(model)
    with pytest.raises(IncompatibleDeltas, match="Activate the delta before the model") as error:
        switch(model, act)
    assert "\n" not in str(error.value)
    assert {name: id(p) for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("wrap", [flatten, partition])
def test_deltas_without_own_values_are_switched(kit: SimpleNamespace, wrap: Any) -> None:
    model = two(kit, "lora", "bare")
    wrap(model)
    for act, then in zip(SWITCHES, ("b", "b", "b", None), strict=True):
        switch(model, act)
        attachments = attachments_of(model)
        assert (None if attachments is None else attachments.active) == (then and One(then))


@pytest.mark.parametrize("wrap", [flatten, partition])
@pytest.mark.parametrize("act", ["save", "summary", "merge"])
def test_parts_are_not_read_as_wholes(
    kit: SimpleNamespace, tmp_path: Any, wrap: Any, act: str
) -> None:
    model = two(kit, "lora")
    wrap(model)
    wanted = r"sharded or offloaded" if act == "merge" else r"summon_full_params|GatheredParameters"
    with pytest.raises(dk.DeltakitError, match=wanted):
        if act == "save":
            dk.save(model, tmp_path / "a", "a")
        else:
            getattr(dk, act)(model)


def test_a_delta_is_attached_before_the_model_is_wrapped(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", "classify")
    flatten(model)
    with pytest.raises(IncompatibleDeltas, match="FullyShardedDataParallel.*first, then wrap"):
        dk.attach(model, dk.LoRA())


def test_own_values_are_not_copied_from_a_partitioned_base(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", "classify")
    partition(model)
    with pytest.raises(IncompatibleDeltas, match="ZeRO-3"):
        dk.attach(model, dk.LoRA())
    assert wrapper_of(model.classifier) is not None


def test_hidden_parameters_are_flat(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    model._is_fsdp_managed_module = True
    with pytest.raises(IncompatibleDeltas, match="FullyShardedDataParallel"):
        dk.attach(model, dk.LoRA())


def test_a_layer_sharded_by_itself_while_a_norm_in_it_is_a_deltas_own(
    kit: SimpleNamespace,
) -> None:
    """Torch would fail in the first pass; the mark is set where the whole model is wrapped."""
    model = two(kit, "lora+norms")
    norm = model.bert.encoder.layer[0].output.LayerNorm
    norm.weight = nn.Parameter(norm.weight.detach().clone())
    with pytest.raises(IncompatibleDeltas, match=r"activate\(model, None\), shard it"):
        model.deltakit._is_fsdp_managed_module = True


def test_a_parameter_that_the_user_puts_into_the_place_of_a_deltas_own_is_saved(
    kit: SimpleNamespace, tmp_path: Any
) -> None:
    model, batch = two(kit, "lora"), kit.make_batch()
    model.classifier.weight = nn.Parameter(model.classifier.weight.detach() + 1)
    expected = kit.out(model, batch)
    dk.save(model, tmp_path / "a", "a")
    other = kit.make_model("bert", "classify")
    dk.load(other, tmp_path / "a")
    assert kit.out(other, batch).equal(expected)


# ------------------------------------------------------------------------------ two processes

PROCESSES = """
import sys, tempfile
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import fully_shard
import deltakit as dk
from deltakit.testing.models import make_batch, make_model
from deltakit.testing.probes import first, randomise_all

def gradients(model):
    own = "deltakit.delta_b.own."  # an active delta's own are listed at the base's names too
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n if n.startswith("deltakit") else own + n: g for n, g in found.items()}

def run(rank, file, wrapper, head, spec):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=2)
    model = make_model("bert", head).eval()
    batch, names = make_batch(), ["a", "b", None]
    torch.manual_seed(0)
    for name in names[:2]:
        dk.attach(model, dk.parse_method(spec), name)
    randomise_all(model)
    expected = {}
    for name in names:
        dk.activate(model, name)
        expected[name] = first(model(**batch)).detach().clone()
    dk.activate(model, "b")
    first(model(**batch)).square().mean().backward()
    wanted = {name: grad.clone() for name, grad in gradients(model).items()}
    model.zero_grad()
    if wrapper == "fsdp":
        wrapped = FSDP(model, use_orig_params=True, device_id=torch.device("cpu"))
    else:
        wrapped = model
        dk.activate(model, None)
        for layer in (model.bert if head != "bare" else model).encoder.layer:
            fully_shard(layer)
        fully_shard(model)
    refused = []
    for name in (*names, "a", "b"):
        try:
            dk.activate(model, name)
        except dk.DeltakitError as error:
            refused.append(str(error))
            continue
        torch.testing.assert_close(first(wrapped(**batch)).detach(), expected[name])
    assert bool(refused) == (wrapper == "fsdp" and head != "bare"), refused
    first(wrapped(**batch)).square().mean().backward()
    folder = f"{tempfile.gettempdir()}/partitions-{rank}-{file[-6:]}"
    if wrapper == "fsdp":
        try:
            dk.save(model, folder, "b")
            raise SystemExit("parts were saved")
        except dk.DeltakitError:
            pass
        with FSDP.summon_full_params(wrapped, with_grads=True):
            found = gradients(model)
            dk.save(model, folder, "b")
    else:
        found = {name: grad.full_tensor() for name, grad in gradients(model).items()}
        dk.save(model, folder, "b")
    assert found.keys() >= wanted.keys() > set()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad)
    other = make_model("bert", head).eval()
    dk.load(other, folder)
    torch.testing.assert_close(first(other(**batch)).detach(), expected["b"])
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(run, ("file://" + tempfile.mktemp(), *sys.argv[1:]), 2)
    print("right or refused")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrapper", "head", "spec"),
    [
        ("fsdp", "bare", "lora"),
        ("fsdp", "classify", "lora"),
        ("fully_shard", "classify", "lora+norms"),
        ("fully_shard", "classify", "bitfit"),
    ],
)
def test_two_processes(tmp_path: Any, wrapper: str, head: str, spec: str) -> None:
    """Switches, gradients and saved folders are those of one process, or refused."""
    script = tmp_path / "run.py"
    script.write_text(PROCESSES, encoding="utf-8")
    command = [sys.executable, str(script), wrapper, head, spec]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip().endswith("right or refused"), done.stderr[-2000:]
