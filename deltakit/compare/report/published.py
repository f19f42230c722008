"""Published figures on the cost of deltas, and a run's own figures next to them.

A claim is data: a sentence, the published figures with their sources, and a function that finds
this run's figures. Figures depend on model, length and machine: it is their direction that a run
can confirm or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deltakit.compare.records.result import Row
from deltakit.compare.records.run import RunRecord
from deltakit.compare.report.charts import Found
from deltakit.compare.report.number_format import format_ratio
from deltakit.compare.report.summary import RowSummary

NOISE = 0.1
"""How far from 1 a ratio of two equal times may lie: what such ratios vary by between runs."""


@dataclass(frozen=True, kw_only=True)
class ClaimInput:
    """The input of a claim.

    Attributes:
        summaries: the rows of the table.
        found: what was found inside their models.
        names: what the page calls the rows.
        run: the record of the run.
    """

    summaries: Sequence[RowSummary]
    found: Mapping[Row, Found]
    names: Mapping[Row, str]
    run: RunRecord


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row's figure: in words, and whether it agrees with the claim."""

    row: str
    words: str
    agrees: bool


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published figure, and its source."""

    figure: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One published claim.

    Attributes:
        text: the claim.
        published: its figures.
        caveat: what the comparison with this run must not be taken for.
        figures: finds this run's figures; none where it has no such rows.
    """

    text: str
    published: tuple[Published, ...]
    caveat: str
    figures: Callable[[ClaimInput], tuple[Figure, ...]]


def _ratios(
    column: str, agrees: Callable[[float], bool]
) -> Callable[[ClaimInput], tuple[Figure, ...]]:
    """One figure for each row that has something to deploy and a value in the column."""

    def figures(evidence: ClaimInput) -> tuple[Figure, ...]:
        ceiling = evidence.run.role("ceiling")
        return tuple(
            Figure(
                row=evidence.names[summary.method, summary.base],
                words=format_ratio(value),
                agrees=agrees(value),
            )
            for summary in evidence.summaries
            if summary.method != ceiling
            and summary.mean("deployed_params")
            and (value := summary.mean(column)) is not None
        )

    return figures


def _steps(
    part: str, what: str, agrees: Callable[[float], bool]
) -> Callable[[ClaimInput], tuple[Figure, ...]]:
    """One figure for each row of which latencies were found by the number of something."""

    def figures(evidence: ClaimInput) -> tuple[Figure, ...]:
        found = {row: each[part] for row, each in evidence.found.items() if part in each}
        return tuple(
            Figure(
                row=evidence.names[row],
                words=", ".join(f"{format_ratio(steps[n])} with {n}" for n in list(steps)[1:])
                + what,
                agrees=agrees(list(steps.values())[-1]),
            )
            for row, steps in found.items()
        )

    return figures


ADAPTERDROP = "Rücklé et al. 2021 (AdapterDrop), EMNLP, arXiv:2010.11918"
UNIPELT = "Mao et al. 2022 (UniPELT), ACL, table 4, BERT-base"
LORA = "Hu et al. 2022 (LoRA), ICLR, arXiv:2106.09685, table 1, GPT-2 M"

CLAIMS = (
    Claim(
        text="Deltas that are not merged are slower at inference than a fully fine-tuned model, "
        "which is as fast as the base.",
        published=(
            Published(figure="adapters at 94 to 96 % of its speed", source=ADAPTERDROP),
            Published(
                figure="1.05× its time for LoRA, 1.07× for adapters, 1.14× for prefixes",
                source=UNIPELT,
            ),
            Published(
                figure="adapters 2.2 to 3.0 % slower at batch 32 and 512 tokens, 20.7 to 30.3 % "
                "at batch 1 and 128 tokens",
                source=LORA,
            ),
        ),
        caveat="This run: latency over the base's for one text at a time. The less there is to "
        "compute, the larger the ratio.",
        figures=_ratios("latency_vs_base_b1", lambda value: value > 1),
    ),
    Claim(
        text="A training step is faster than one of full fine-tuning.",
        published=(
            Published(figure="adapters up to 60 % faster", source=ADAPTERDROP),
            Published(
                figure="0.53× its time for LoRA, 0.55× for adapters, 0.56× for prefixes, 0.65× "
                "for BitFit",
                source=UNIPELT,
            ),
        ),
        caveat="This run: time of a step over full fine-tuning's. It is not the time to a given "
        "accuracy: Mundra et al. 2023 (arXiv:2305.07491) find adapters relatively expensive to "
        "train.",
        figures=_ratios("train_step_vs_full", lambda value: value < 1),
    ),
    Claim(
        text="A delta that is merged into the weights runs as fast as the base.",
        published=(
            Published(figure="no added latency: its LoRA column is the merged model", source=LORA),
        ),
        caveat="This run: latency over the base's after merging, within 10 % of 1, which is what "
        "such ratios vary by.",
        figures=_ratios("merged_latency_vs_base_b1", lambda value: abs(value - 1) < NOISE),
    ),
    Claim(
        text="Inference is the faster the more of the lowest layers run without their deltas.",
        published=(
            Published(
                figure="faster by 4.3 % for each dropped layer that two tasks share, by 8.4 % with "
                "16 tasks; by 21 to 42 % for the first five layers",
                source=ADAPTERDROP,
            ),
        ),
        caveat="This run: latency over that with all layers, for one text of one task, so there "
        "is no more to be gained than the deltas cost.",
        figures=_steps("by_dropped", " layers dropped", lambda value: value < 1),
    ),
    Claim(
        text="A fusion costs the more the more members it has.",
        published=(
            Published(
                figure="with eight adapters inference about 62 % slower and training about 47 % "
                "slower than full fine-tuning; pruned from eight to two, 68 % faster",
                source=ADAPTERDROP,
            ),
        ),
        caveat="This run: latency over that with one member, for one text.",
        figures=_steps("by_members", " members", lambda value: value > 1),
    ),
)
"""The claims, in the order of the page."""
