"""Texts that a model writes, by decoders and encoder-decoders: asked, judged, compared, refused."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.api import run_plan
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.result import Predictions
from deltakit.compare.run.predict import predict
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks import ColumnNames, load_task
from deltakit.compare.tasks.kinds import Answers, Generation
from deltakit.compare.tasks.kinds.written import Decoder, EncoderDecoder
from deltakit.errors import InvalidConfig, MissingExtra
from deltakit.models.source import BaseChoice, find_model

FP32 = BaseChoice(name="fp32")
PAIRS = {"goal": "phone", "bank": "soup", "bread": "code", "match": "cake"}
"""The words that a target has in place of those of its source."""
_BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": None,
}
CONFIGS = {
    "t5": {"d_ff": 32, "d_kv": 4, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
    | {"dropout_rate": 0.0},
    "bart": _BART,
    "mbart": _BART,
}


def rewriting(draw: random.Random) -> dict[str, str]:
    words = draw.choices((*PAIRS, "the", "film"), k=draw.randrange(2, 6))
    return {
        "source": " ".join(words),
        "target": " ".join(PAIRS.get(word, word) for word in words),
    }


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace, decoder: Path
) -> dict[str, Path]:
    """A tiny encoder-decoder of each family with random values, and the tiny decoder."""
    root = tmp_path_factory.mktemp("written")
    for family, config in CONFIGS.items():
        make.model(root / family, family, "AutoModelForSeq2SeqLM", **config)
        make.tokenizer(root / family, inputs=["input_ids", "attention_mask"], pad=True)
    return {**{family: root / family for family in CONFIGS}, "decoder": decoder}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace) -> Path:
    root = tmp_path_factory.mktemp("rewriting")
    for split, n in (("train", 96), ("validation", 12), ("test", 24)):
        draw = random.Random(f"rewriting {split}")
        make.lines(root / f"{split}.jsonl", [rewriting(draw) for _ in range(n)])
    return root


@pytest.fixture
def ready(models: dict[str, Path], folder: Path) -> Callable[..., SimpleNamespace]:
    """The task encoded for a model, and the model."""

    def prepare(family: str, beams: int = 1) -> SimpleNamespace:
        task = load_task(str(folder))
        source = find_model(str(models[family]))
        tokenizer, torch_seed = source.tokenizer(), 0
        torch.manual_seed(torch_seed)
        config = SimpleNamespace(is_encoder_decoder=family in CONFIGS)
        kind = Generation(beams=beams).for_model(config)
        model = source.load(FP32, kind.head, tokenizer.pad_token_id).model
        data = kind.encode(task.test, tokenizer, 24)
        return SimpleNamespace(task=task, kind=kind, model=model, tokenizer=tokenizer, data=data)

    return prepare


# ------------------------------------------------------------------------------ asking the model


METHODS = ("head", "adapter", "lora", "prefix[length=3]", "mam", "ia3", "prompt[length=3]")


def stepwise(model: Any, row: dict[str, Any], end: int) -> list[int]:
    """The most likely token, `most` times, with neither a batch nor a cache."""
    ids = torch.tensor([row["before"]])
    written = [model.generation_config.decoder_start_token_id]
    for _ in range(row["most"]):
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                decoder_input_ids=torch.tensor([written]),
                use_cache=False,
            ).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == end:
            break
    return written[1:]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("spec", METHODS)
def test_methods_are_there_while_an_encoder_decoder_writes(
    family: str, spec: str, ready: Callable[..., SimpleNamespace]
) -> None:
    it = ready(family)
    data = it.data.select(range(6))
    adapted = adapted_model(it.model, dk.parse_method(spec))
    adapted.attach()
    with torch.no_grad():
        for parameter in it.model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5)
    model = it.model.eval()
    end = it.tokenizer.eos_token_id
    expected = [stepwise(model, row, end) for row in data]
    texts = it.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert predict(model, data, it.kind, it.tokenizer).predicted == tuple(map(str.strip, texts))
    if spec != "head":
        with dk.disabled(model):
            assert [stepwise(model, row, end) for row in data] != expected


@pytest.mark.parametrize("family", [*CONFIGS, "decoder"])
@pytest.mark.parametrize("beams", [1, 3])
def test_neither_batches_nor_padding_change_what_is_written(
    family: str,
    beams: int,
    ready: Callable[..., SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = ready(family, beams)
    together = predict(it.model, it.data, it.kind, it.tokenizer)
    assert len(set(together.predicted)) > 1
    monkeypatch.setattr(Generation, "batch_size", 1)
    assert predict(it.model, it.data, it.kind, it.tokenizer) == together
