"""What a form is given when it asks: x and h, the padding mask, the numbers of the tokens."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.testing import checks
from deltakit.testing.case import Case, NotApplicable


class Reader(dk.Delta):
    """Notes what it is given, and changes h by all of it."""

    reads = (dk.Reads.POSITION_IDS, dk.Reads.REPRESENTATION, dk.Reads.MASK, dk.Reads.INPUT)

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.ones(d_out, d_in))
        self.given: list[tuple[Tensor, ...]] = []

    def forward(self, numbers: Tensor, h: Tensor, mask: Tensor, x: Tensor) -> Tensor:
        if not torch._C._functorch.is_batchedtensor(h):
            self.given.append((numbers, h, mask, x))
        real = mask[..., -h.shape[-2] :].unsqueeze(-1)
        return torch.sigmoid(x @ self.weight.T) * h * real / (1 + numbers.unsqueeze(-1))


@dataclass(frozen=True, kw_only=True)
class ReadsAll(dk.Method):
    """A form that reads everything, at one site."""

    site: str = "attn.q"

    paper: ClassVar[Any] = dk.LoRA.paper
    learning_rate: ClassVar[float] = 1e-3
    starts: ClassVar[dk.InitialOutput] = dk.InitialOutput.ELSEWHERE

    def placements(self) -> tuple[dk.Placement, ...]:
        make = lambda handle: Reader(handle.d_in, handle.d_out)  # noqa: E731
        site, insertion = dk.Site(self.site), dk.Insertion.SEQUENTIAL
        return (dk.Placement(site=site, make_delta=make, insertion=insertion),)


def given(kit: SimpleNamespace, model: Any, **inputs: Tensor) -> tuple[Tensor, ...]:
    form = next(module for module in model.modules() if isinstance(module, Reader))
    form.given.clear()
    kit.out(model, inputs)
    return form.given[-1]


@pytest.mark.parametrize("site", ["attn.q", "ffn.out", "block.out"])
@pytest.mark.parametrize("family", ["bert", "llama", "opt", "gpt2"])
def test_shapes_and_values(kit: SimpleNamespace, family: str, site: str) -> None:
    model, ids = kit.make_model(family), torch.arange(3, 15).view(2, 6)
    dk.attach(model, ReadsAll(site=site))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    numbers, h, seen, x = given(kit, model, input_ids=ids, attention_mask=mask)
    assert h.shape == (2, 6, 16) and x.shape[:2] == (2, 6)
    assert seen.dtype == torch.bool and torch.equal(seen, mask.bool())
    assert torch.equal(numbers, torch.arange(6).expand(2, -1))
    places = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]])
    numbers, _, seen, _ = given(kit, model, input_ids=ids, position_ids=places)
    assert seen.all() and seen.shape == (2, 6) and torch.equal(numbers, places)


def test_a_cached_sequence(kit: SimpleNamespace) -> None:
    model, ids = kit.make_model("llama", "causal"), torch.arange(3, 15).view(2, 6)
    dk.attach(model, ReadsAll())
    cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    numbers, h, seen, _ = given(kit, model, input_ids=ids[:, 4:], past_key_values=cache)
    assert h.shape[1] == 2 and seen.shape == (2, 6)
    assert torch.equal(numbers, torch.tensor([[4, 5], [4, 5]]))


def test_two_stacks_have_masks_of_their_own(kit: SimpleNamespace) -> None:
    model, inputs = kit.make_model("t5"), kit.make_inputs("t5")
    dk.attach(model, ReadsAll() + ReadsAll(site="attn.k"))
    rows, tokens = inputs["decoder_input_ids"].shape
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, -1] = 0
    kit.out(model, {**inputs, "decoder_attention_mask": mask})
    for key, form in model.deltakit.attached["default"].modules():
        encoder = key.startswith("encoder") or key in ("cross.0.attn.k", "cross.1.attn.k")
        expected = inputs["attention_mask"] if encoder else mask
        assert torch.equal(form.given[-1][2], expected.bool()), key


@pytest.mark.parametrize("family", ["bert", "opt", "llama"])
def test_rows_sums_and_stacks(kit: SimpleNamespace, family: str) -> None:
    model, batch = kit.make_model(family), kit.make_batch(rows=4, length=6)
    for name in "ab":
        dk.attach(model, ReadsAll(site="ffn.out") + dk.LoRA(rank=2), name)
    kit.randomise_deltas(model)
    compositions: dict[str, Any] = {
        "a": "a",
        "b": "b",
        "ab": dk.Stack("a", "b"),
        "mean": dk.Mean("a", "b"),
    }
    outputs = {}
    for name, composition in compositions.items():
        dk.activate(model, composition)
        outputs[name] = kit.out(model, batch)
    dk.activate(model, dk.PerRow([*compositions.values()]))
    found = kit.out(model, batch)
    for row, name in enumerate(compositions):
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(
            found[row][real], outputs[name][row][real], atol=1e-5, rtol=1e-5, msg=name
        )


@pytest.mark.parametrize(
    "law",
    [
        checks.check_start,
        checks.check_gradients,
        checks.check_checkpointing,
        checks.check_merge,
        checks.check_resumed,
    ],
)
def test_laws_of_a_form_that_reads_both(law: Any) -> None:
    law(Case.of(dk.DoRA(rank=2), "bert"))


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize(
    "law", [checks.check_padding, checks.check_checkpointing, checks.check_generation]
)
def test_laws_of_a_form_that_reads_the_mask(law: Any, family: str) -> None:
    case = Case.of(dk.LoReFT(rank=2, first=3, last=0), family)
    try:
        law(case)
    except NotApplicable:
        assert family == "bert" and law is checks.check_generation


def test_generation_is_not_asked_of_a_form_that_reads_the_end() -> None:
    with pytest.raises(NotApplicable, match="when another follows"):
        checks.check_generation(Case.of(dk.LoReFT(rank=2), "llama"))


@pytest.mark.parametrize(("family", "training"), [("bert", True), ("clip_text_model", False)])
def test_what_a_graph_cannot_read_runs_outside_it(
    kit: SimpleNamespace, family: str, training: bool
) -> None:
    """A bare model's pass begins outside the graph of the compiled model."""
    model, batch = kit.make_model(family).train(training), kit.make_inputs(family)
    assert not any(each.p for each in model.modules() if isinstance(each, torch.nn.Dropout))
    dk.attach(model, dk.LoReFT(rank=2, first=2, last=2))
    kit.randomise_deltas(model)
    expected = kit.out(model, batch)
    torch.compiler.reset()
    try:
        found = kit.out(torch.compile(model, backend="eager"), batch)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.compiler.reset()
        with pytest.raises(Exception, match="Compile a model with a head as a whole"):
            kit.out(torch.compile(model, backend="eager", fullgraph=True), batch)
    finally:
        torch.compiler.reset()
