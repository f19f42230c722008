"""The cost of a fusion: over the base, over full fine-tuning, and folded.

    python benchmarks/fusion.py                         # about three minutes on one thread
    python benchmarks/fusion.py --members 8 --repeats 40

A row is a fusion of so many Pfeiffer adapters of reduction 16 on a model of MiniLM's size. Forward
passes are of 8 rows by 64 tokens, and of 1 by 32. Training steps are of 16 by 64, over those of
full fine-tuning. All that is compared runs in one process in alternation.
"""

import argparse
from typing import Any

import torch
from beside_peft import Row, batch, bert, forward
from tabulate import tabulate

import deltakit as dk
from deltakit.compare.measure.timing import Step, interleave

SHAPES = ((1, 32), (8, 64))


def fused(members: int) -> Any:
    """The model with a fusion over so many adapters."""
    model = bert()
    names = [f"m{number}" for number in range(members)]
    for name in names:
        dk.attach(model, dk.SequentialAdapter(), name=name)
    dk.attach(model, dk.AdapterFusion(*names), name="fused")
    return model


def folded(members: int) -> Any:
    """The same, folded."""
    model = fused(members)
    dk.merge(model)
    return model


def shape(rows: int, tokens: int) -> Row:
    """A batch of a size, for `batch`."""
    return Row(name="", model=bert, ours=lambda x: x, theirs=None, rows=rows, tokens=tokens)


def forward_ratios(members: int, rows: int, tokens: int, repeats: int) -> list[float]:
    """Time of a forward pass over the base's: with the fusion, and with it folded."""
    given = batch(shape(rows, tokens), labels=False)
    models = (bert(), fused(members), folded(members))
    base, *others = interleave([forward(m, given) for m in models], repeats=repeats, warmup=3)
    return [each.over(base) for each in others]


def step_ratio(members: int, repeats: int) -> float:
    """Time of a training step over full fine-tuning's."""
    given = batch(shape(16, 64), labels=True)
    full, own = interleave(
        [Step(bert(), given), Step(fused(members), given)], repeats=repeats, warmup=2
    )
    return own.over(full)


def line(members: int, repeats: int) -> list[str]:
    """The row of a fusion over so many adapters."""
    passes = [r for s in SHAPES for r in forward_ratios(members, *s, repeats)]
    step = step_ratio(members, max(5, repeats // 3))
    return [str(members), *(f"{ratio:.2f}" for ratio in (*passes, step))]


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, nargs="*", default=[3, 8])
    parser.add_argument("--repeats", type=int, default=30)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    headers = ("members", *(f"{r}×{t}{x}" for r, t in SHAPES for x in ("", " folded")), "step")
    table = [line(members, chosen.repeats) for members in chosen.members]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
