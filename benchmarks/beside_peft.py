"""Forward and training step beside `peft`, as ratios from one run.

    python benchmarks/beside_peft.py                 # about four minutes on two cores
    python benchmarks/beside_peft.py --repeats 50    # steadier

Every row runs the same method on the same random model three times in turn: the plain base,
deltakit and peft, A B C A B C. A figure is the median over the turns of the ratio to the base of
that turn, so it holds while the machine's speed drifts. Absolute times say nothing here: the models
are small and their weights are random. Training steps are forward, backward and AdamW; the base's
own training step trains everything.
"""

import argparse
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from tabulate import tabulate
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import deltakit as dk
from deltakit.compare.measure.timing import Step, interleave

ENCODER = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 4000,
}
DECODER = {
    "hidden_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "vocab_size": 4000,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: a model, a method in both libraries, and a batch of ``rows`` by ``tokens``."""

    name: str
    model: Callable[[], Any]
    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any] | None
    rows: int = 8
    tokens: int = 64
    train: bool = True
    call: tuple[tuple[str, Any], ...] = ()


def bert() -> Any:
    """A sentence classifier of MiniLM's size."""
    config = AutoConfig.for_model("bert", **ENCODER)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")


def llama() -> Any:
    """A small decoder with grouped queries."""
    config = AutoConfig.for_model("llama", **DECODER)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def attached(method: dk.Method) -> Callable[[Any], Any]:
    """The model with our delta."""

    def build(model: Any) -> Any:
        dk.attach(model, method)
        return model

    return build


def wrapped(config: Any) -> Callable[[Any], Any]:
    """The model with theirs."""
    return lambda model: get_peft_model(model, copy.deepcopy(config))


def merged(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same with the delta folded into the weights, and still attached."""

    def fold(model: Any) -> Any:
        model = build(model)
        if "deltakit" in model._modules:
            dk.merge(model)
        else:
            model.merge_adapter()
        return model

    return fold


def switched_off(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same with the delta disabled, and still attached."""

    def off(model: Any) -> Any:
        model = build(model)
        if "deltakit" in model._modules:
            dk.activate(model, None)
        else:
            model.base_model.disable_adapter_layers()
        return model

    return off


def mixed_ours(names: list[str]) -> Callable[[Any], Any]:
    """LoRAs under several names, one for each row."""

    def build(model: Any) -> Any:
        for name in dict.fromkeys(names):
            dk.attach(model, dk.LoRA(), name=name)
        dk.activate(model, dk.PerRow(names))
        return model

    return build


def mixed_theirs(names: list[str], config: Any) -> Callable[[Any], Any]:
    """The same in peft, which takes the names with each call."""

    def build(model: Any) -> Any:
        first, *rest = dict.fromkeys(names)
        model = get_peft_model(model, copy.deepcopy(config), adapter_name=first)
        for name in rest:
            model.add_adapter(name, copy.deepcopy(config))
        return model

    return build


ATTENTION = ["q_proj", "v_proj"]
LINEARS = [*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QV = LoraConfig(r=8, lora_alpha=16, target_modules=ATTENTION)
ALL = LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS)
SCALED = IA3Config(
    target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
)
PREFIX = PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM")
BERT_QV = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")
MIX_2 = ["a", "b"] * 4
MIX_8 = [f"d{i}" for i in range(8)]

ROWS = (
    Row(
        name="bert, LoRA q v",
        model=bert,
        ours=attached(dk.LoRA()),
        theirs=wrapped(BERT_QV),
    ),
    Row(name="llama, LoRA q v", model=llama, ours=attached(dk.LoRA()), theirs=wrapped(QV)),
    Row(
        name="llama, LoRA all linears",
        model=llama,
        ours=attached(dk.LoRA(targets="all")),
        theirs=wrapped(ALL),
    ),
    Row(name="llama, (IA)3", model=llama, ours=attached(dk.IA3()), theirs=wrapped(SCALED)),
    Row(
        name="llama, prefix 20",
        model=llama,
        ours=attached(dk.PrefixTuning(length=20, bottleneck=None)),
        theirs=wrapped(PREFIX),
    ),
    Row(
        name="llama, prefix 20 through a network",
        model=llama,
        ours=attached(dk.PrefixTuning(length=20, bottleneck=384)),
        theirs=wrapped(
            PrefixTuningConfig(
                num_virtual_tokens=20,
                task_type="CAUSAL_LM",
                prefix_projection=True,
                encoder_hidden_size=384,
            )
        ),
    ),
    Row(
        name="llama, adapter",
        model=llama,
        ours=attached(dk.SequentialAdapter()),
        theirs=None,
    ),
    Row(
        name="llama, MAM",
        model=llama,
        ours=attached(dk.MAM(length=20, bottleneck=64)),
        theirs=None,
    ),
    Row(
        name="llama, LoRA all linears, one token",
        model=llama,
        ours=attached(dk.LoRA(targets="all")),
        theirs=wrapped(ALL),
        rows=1,
        tokens=1,
        train=False,
    ),
    Row(
        name="the same, merged",
        model=llama,
        ours=merged(attached(dk.LoRA(targets="all"))),
        theirs=merged(wrapped(ALL)),
        rows=1,
        tokens=1,
        train=False,
    ),
    Row(
        name="the same, disabled",
        model=llama,
        ours=switched_off(attached(dk.LoRA(targets="all"))),
        theirs=switched_off(wrapped(ALL)),
        rows=1,
        tokens=1,
        train=False,
    ),
    Row(
        name="8 rows of 2 LoRAs q v",
        model=llama,
        ours=mixed_ours(MIX_2),
        theirs=mixed_theirs(MIX_2, QV),
        tokens=16,
        train=False,
        call=(("adapter_names", MIX_2),),
    ),
    Row(
        name="8 rows of 8 LoRAs q v",
        model=llama,
        ours=mixed_ours(MIX_8),
        theirs=mixed_theirs(MIX_8, QV),
        tokens=16,
        train=False,
        call=(("adapter_names", MIX_8),),
    ),
    Row(
        name="8 rows of 8 LoRAs q v, one token",
        model=llama,
        ours=mixed_ours(MIX_8),
        theirs=mixed_theirs(MIX_8, QV),
        tokens=1,
        train=False,
        call=(("adapter_names", MIX_8),),
    ),
)


def batch(row: Row, *, labels: bool) -> dict[str, Any]:
    """Random tokens without padding."""
    ids = torch.randint(1, 4000, (row.rows, row.tokens))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if labels:
        given["labels"] = ids[:, 0] % 2 if row.model is bert else ids
    return given


def forward(model: Any, given: dict[str, Any]) -> Callable[[], None]:
    """One pass without gradients."""
    model.eval()

    def run() -> None:
        with torch.inference_mode():
            model(**given)

    return run


def forward_ratios(row: Row, repeats: int) -> list[float]:
    """Time of a forward pass over the base's."""
    given = batch(row, labels=False)
    actions = [forward(row.model(), given), forward(row.ours(row.model()), given)]
    if row.theirs is not None:
        actions.append(forward(row.theirs(row.model()), {**given, **dict(row.call)}))
    base, *others = interleave(actions, repeats=repeats, warmup=3)
    return [other.over(base) for other in others]


def step_ratios(row: Row, repeats: int) -> list[float]:
    """Time of a training step over full fine-tuning's."""
    given = batch(row, labels=True)
    actions: list[Callable[[], None]] = [Step(row.model(), given)]
    actions.append(Step(row.ours(row.model()), given))
    if row.theirs is not None:
        actions.append(Step(row.theirs(row.model()), given))
    base, *others = interleave(actions, repeats=repeats, warmup=2)
    return [other.over(base) for other in others]


def shown(ratios: list[float]) -> list[str]:
    """Both libraries' ratios, and ours over theirs."""
    if len(ratios) == 1:
        return [f"{ratios[0]:.2f}", "", ""]
    return [f"{ratios[0]:.2f}", f"{ratios[1]:.2f}", f"{ratios[0] / ratios[1]:.2f}"]


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    table = []
    for row in ROWS:
        if chosen.rows in row.name:
            few = max(5, chosen.repeats // 3)
            steps = step_ratios(row, few) if row.train else []
            cells = shown(forward_ratios(row, chosen.repeats)) + (shown(steps) if steps else [])
            table.append([row.name, *cells])
            print(f"{row.name}: {cells}", flush=True)
    headers = ("", "forward", "peft's", "ratio", "step", "peft's", "ratio")
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
