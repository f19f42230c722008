"""The costs of deltakit next to those of `adapters`, each over its own base.

    python benchmarks/beside_adapters.py            # about eight minutes on one thread
    python benchmarks/beside_adapters.py --rows fusion --repeats 40

The two libraries need different versions of transformers, so this script makes an environment for
`adapters` beside itself, once (two minutes). Each library has a process of its own. They measure
row by row in turn, and each figure is a ratio to the same model without a delta, measured in
alternation in the same process. Models are of MiniLM's size with random weights. A training step is
forward, backward and AdamW, over that of full fine-tuning.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

WHERE = Path(__file__).resolve().parent / ".venv"
NEEDS = ("adapters==1.3.0", "transformers~=4.57.0")
ENCODER = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 4000,
}
FORWARD = ((1, 32), (8, 64))
STEP = (16, 64)

Build = Callable[[Any], Any]


# ------------------------------------------------------------------------- what is put on a model


def ours() -> dict[str, Build]:
    """The rows with deltakit."""
    import deltakit as dk

    def one(method: dk.Method) -> Build:
        return lambda model: dk.attach(model, method)

    def fusion(number: int) -> Build:
        def build(model: Any) -> None:
            names = [f"m{index}" for index in range(number)]
            for name in names:
                dk.attach(model, dk.SequentialAdapter(), name=name)
            dk.attach(model, dk.AdapterFusion(*names), name="fused")

        return build

    def folded(number: int) -> Build:
        def build(model: Any) -> None:
            fusion(number)(model)
            dk.merge(model)

        return build

    return {
        "LoRA q v": one(dk.LoRA()),
        "(IA)³": one(dk.IA3()),
        "prefix 30": one(dk.PrefixTuning(length=30, bottleneck=None)),
        "Pfeiffer, factor 16": one(dk.SequentialAdapter()),
        "Houlsby, factor 16": one(dk.SequentialAdapter(placement="houlsby")),
        "parallel, factor 2": one(dk.ParallelAdapter()),
        "MAM": one(dk.MAM(length=30, bottleneck=192)),
        "fusion of 3": fusion(3),
        "fusion of 3, folded": folded(3),
        "fusion of 8": fusion(8),
        "fusion of 8, folded": folded(8),
    }


def theirs() -> dict[str, Build]:
    """The rows that `adapters` has."""
    import adapters
    from adapters.composition import Fuse

    def one(config: str) -> Build:
        def build(model: Any) -> None:
            adapters.init(model)
            model.add_adapter("a", config=config)
            model.train_adapter("a")

        return build

    def fusion(number: int) -> Build:
        def build(model: Any) -> None:
            adapters.init(model)
            fuse = Fuse(*[f"m{index}" for index in range(number)])
            for name in fuse.children:
                model.add_adapter(name, config="seq_bn")
            model.add_adapter_fusion(fuse)
            model.train_adapter_fusion(fuse)

        return build

    return {
        "LoRA q v": one("lora[r=8,alpha=16]"),
        "(IA)³": one("ia3"),
        "prefix 30": one("prefix_tuning[prefix_length=30,flat=True]"),
        "Pfeiffer, factor 16": one("seq_bn"),
        "Houlsby, factor 16": one("double_seq_bn"),
        "parallel, factor 2": one("par_bn"),
        "MAM": one("mam"),
        "fusion of 3": fusion(3),
        "fusion of 8": fusion(8),
    }


# ------------------------------------------------------------------------- one library's process


def model() -> Any:
    """A sentence classifier of MiniLM's size."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model("bert", **ENCODER)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")


def with_delta(build: Build) -> Any:
    """The model with a delta."""
    changed = model()
    build(changed)
    return changed


def batch(rows: int, tokens: int) -> dict[str, Any]:
    """Random tokens without padding."""
    import torch

    ids = torch.randint(1, ENCODER["vocab_size"], (rows, tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def forward(changed: Any, given: dict[str, Any]) -> Callable[[], None]:
    """One pass without gradients."""
    import torch

    changed.eval()

    def run() -> None:
        with torch.inference_mode():
            changed(**given)

    return run


def step(changed: Any, given: dict[str, Any]) -> Callable[[], None]:
    """One training step, with a learning rate of zero."""
    import torch

    trained = [p for p in changed.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    labels = given["input_ids"][:, 0] % 2

    def run() -> None:
        changed(**given, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def ratio(own: Callable[[], None], base: Callable[[], None], repeats: int) -> float:
    """The median ratio of two actions that run in turn."""
    ratios = []
    for turn in range(repeats + 3):
        times = []
        for action in (base, own):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        if turn >= 3:
            ratios.append(times[1] / times[0])
    return statistics.median(ratios)


def measured(build: Build, repeats: int, *, train: bool) -> list[float | None]:
    """The ratios of one row: forward passes, and the training step where there is one."""
    found: list[float | None] = [
        ratio(forward(with_delta(build), given), forward(model(), given), repeats)
        for given in (batch(*shape) for shape in FORWARD)
    ]
    if not train:
        return [*found, None]
    given, changed = batch(*STEP), with_delta(build)
    few = max(5, repeats // 3)
    return [*found, ratio(step(changed, given), step(model(), given), few)]


def work(rows: dict[str, Build]) -> None:
    """Answers each line of the standard input, a row and the repetitions, with its ratios."""
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        name, repeats = json.loads(line)
        train = "folded" not in name
        found = measured(rows[name], repeats, train=train) if name in rows else None
        print(json.dumps(found), file=answers, flush=True)


# ------------------------------------------------------------------------- both


def environment() -> Path:
    """The interpreter of the environment with `adapters`, which is made where it is missing."""
    python = WHERE / "bin" / "python"
    if not (WHERE / "made").exists():
        import torch

        print(f"making {WHERE} with {', '.join(NEEDS)}", file=sys.stderr)
        venv.create(WHERE, with_pip=True, clear=True)
        needs = (*NEEDS, f"torch=={torch.__version__}")
        subprocess.run([python, "-m", "pip", "install", "-q", *needs], check=True)
        (WHERE / "made").touch()
    return python


def worker(python: Path | str, library: str) -> "subprocess.Popen[str]":
    """A process that measures with one library."""
    return subprocess.Popen(
        [python, __file__, "--worker", library],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def ask(process: "subprocess.Popen[str]", name: str, repeats: int) -> list[float | None] | None:
    """One library's ratios of a row; None where it has no such row."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps([name, repeats]) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"{process.args} failed at {name!r}; run it with that row on its input.")
    found: list[float | None] | None = json.loads(answer)
    return found


def shown(ratios: list[float | None] | None) -> list[str]:
    """The cells of one library."""
    return ["–" if each is None else f"{each:.2f}" for each in ratios or [None] * 3]


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worker", choices=("deltakit", "adapters"), help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument(
        "--python", help=f"of an environment that has {' and '.join(NEEDS)} [made here]"
    )
    chosen = parser.parse_args()
    if chosen.worker:
        work(ours() if chosen.worker == "deltakit" else theirs())
        return
    from tabulate import tabulate

    both = [worker(sys.executable, "deltakit"), worker(chosen.python or environment(), "adapters")]
    table = []
    for name in ours():
        if chosen.rows in name:
            cells = [shown(ask(each, name, chosen.repeats)) for each in both]
            table.append([name, *cells[0], *cells[1]])
            print(table[-1], file=sys.stderr, flush=True)
    for each in both:
        each.communicate()
    figures = (*(f"{rows}×{tokens}" for rows, tokens in FORWARD), "step")
    headers = ("", *figures, *(f"adapters' {figure}" for figure in figures))
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
