"""Predicted memory as a table: methods by bases, with and without gradient checkpointing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import deltakit as dk
from deltakit.compare.measure.predicted_memory import Load, PredictedMemory, predicted_memory
from deltakit.compare.plan.request import NamedMethod, Request, split_epochs
from deltakit.core.method import CombiningMethod, Method
from deltakit.errors import DeltakitError, InvalidConfig, unknown
from deltakit.models.heads import (
    ChoiceHead,
    Head,
    ImageHead,
    LanguageHead,
    Seq2SeqHead,
    SequenceHead,
    SpanHead,
    TokenHead,
)
from deltakit.models.loading import read_config
from deltakit.models.source import BaseChoice, ModelSource, device, find_model
from deltakit.models.weights import WEIGHT_FORMATS, Floating

HEADS: Mapping[str, Head] = {
    "classification": SequenceHead(outputs=2),
    "regression": SequenceHead(outputs=1, problem="regression"),
    "multilabel": SequenceHead(outputs=2, problem="multi_label_classification"),
    "causal": LanguageHead(),
    "answers": LanguageHead(),
    "images": ImageHead(outputs=2),
    "generation": LanguageHead(),
    "chat": LanguageHead(),
    "tokens": TokenHead(outputs=2),
    "spans": SpanHead(),
    "choice": ChoiceHead(),
}
"""The head of a model by the kind of its task, where no task is read: two classes."""


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """One line of the table; `memory` is None where the method cannot be trained on the base."""

    method: str
    base: str
    gradient_checkpointing: bool
    memory: PredictedMemory | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class MemoryQuestion:
    """The model and the sizes that a table is made for."""

    model: ModelSource
    head: Head
    loads: tuple[Load, ...]


def memory_question(request: Request, checkpointing: bool | None) -> MemoryQuestion:
    """Finds the model of a request. Its task is not read: the kind of task tells the head.

    Args:
        request: what is asked for.
        checkpointing: with gradient checkpointing or without; None is both.

    Raises:
        DeltakitError: a model or a kind that there is not, or a length that the model cannot read.
    """
    model = find_model(request.model)
    config = read_config(model.location, local_files_only=model.local_only)
    length = request.budget.max_length
    most = vars(config).get("max_position_embeddings")
    if most is not None and length > most:
        raise InvalidConfig(
            f"--max-length {length}: model {model.name!r} reads {most} tokens at most. Give fewer."
        )
    load = Load(batch_size=request.budget.batch_size, max_length=length)
    both = (False, True) if checkpointing is None else (checkpointing,)
    return MemoryQuestion(
        model=model,
        head=_head(request.kind, config),
        loads=tuple(replace(load, gradient_checkpointing=each) for each in both),
    )


def memory_rows(request: Request, question: MemoryQuestion) -> Iterator[MemoryRow]:
    """The rows of a request, one after the other: each takes a moment.

    Raises:
        DeltakitError: a method or a base that there is not.
    """
    methods = dict(map(_labelled, request.methods))
    bases = [_choice(name, request.compute_dtype) for name in request.bases]
    sources = len(request.source_tasks) + 1  # the target's own delta is a member too
    for label, method in methods.items():
        for base in bases:
            for load in question.loads:
                yield _row(label, method, base, question, load, sources)


def _row(
    label: str,
    method: Method,
    base: BaseChoice,
    question: MemoryQuestion,
    load: Load,
    sources: int,
) -> MemoryRow:
    over, members = _with_members(method, sources)
    row = MemoryRow(
        method=label,
        base=base.name,
        gradient_checkpointing=load.gradient_checkpointing,
        memory=None,
    )
    try:
        found = predicted_memory(
            question.model, over, base, question.head, load, members=members, device=device()
        )
    except DeltakitError as error:
        return replace(row, reason=str(error))
    return replace(row, memory=found)


def _with_members(method: Method, sources: int) -> tuple[Method, dict[str, Method]]:
    """The method over as many members as a comparison trains for it, where it combines some."""
    if not isinstance(method, CombiningMethod):
        return method, {}
    names = method.names or tuple(f"member-{number}" for number in range(sources))
    return replace(method, names=names), dict.fromkeys(names, method.member)


def _labelled(asked: str | NamedMethod) -> tuple[str, Method]:
    given = asked if isinstance(asked, str) else asked.method
    method = dk.parse_method(split_epochs(given)[0]) if isinstance(given, str) else given
    return str(asked), method


def _choice(name: str, dtype: str | None) -> BaseChoice:
    if isinstance(WEIGHT_FORMATS.get(name), Floating):
        return BaseChoice(name=name)
    usual = "float32" if device().type == "cpu" else "bfloat16"
    return BaseChoice(name=name, dtype=dtype or usual)


def _head(kind: str | None, config: Any) -> Head:
    """The head of a kind of task; without one, that of the class that the config names."""
    if kind is None:
        kind = _usual_kind(config)
    if kind not in HEADS:
        raise unknown("--kind", kind, HEADS, hint="Memory is predicted for these.")
    if config.is_encoder_decoder and kind in ("answers", "generation"):
        return Seq2SeqHead()
    return HEADS[kind]


def _usual_kind(config: Any) -> str:
    """The kind of task that the class of a config is for; classification of texts otherwise."""
    from transformers import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )

    saved = config.architectures or ()
    if any("CausalLM" in name for name in saved):
        return "causal"
    writes = type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if writes and any("ForConditionalGeneration" in name for name in saved):
        return "generation"
    texts = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    images = type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return "images" if images and not texts else "classification"
