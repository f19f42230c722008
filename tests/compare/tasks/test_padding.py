"""A text's prediction does not depend on the texts that are predicted with it."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

from deltakit.compare.run.predict import predict
from deltakit.compare.tasks.kinds import Classification
from deltakit.compare.tasks.kinds.answers import Answers
from deltakit.compare.tasks.kinds.causal import Causal
from deltakit.compare.tasks.kinds.tokens import Tokens

CONFIGS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "opt": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
    | {"max_position_embeddings": 32, "word_embed_proj_dim": 16},
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"intermediate_size": 32},
}


def tokenizer_that_pads(side: str) -> Any:
    words = {"[PAD]": 0, "[EOS]": 31, **{f"w{n}": n + 1 for n in range(30)}}
    text = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=text,
        pad_token="[PAD]",
        unk_token="[PAD]",
        eos_token="[EOS]",
        padding_side=side,
        model_max_length=32,
    )


def decoder(family: str, auto: Any, **more: Any) -> Any:
    """A tiny random decoder of which positions matter."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=32, pad_token_id=0, eos_token_id=31, **CONFIGS[family], **more
    )
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" in name or "wpe" in name:
                parameter.copy_(torch.randn_like(parameter))
    return model


def sentence(n: int, words: int) -> list[str]:
    return [f"w{(n * 7 + k) % 30}" for k in range(words)]


TEXTS = [" ".join(sentence(n, 1 + 2 * n)) for n in range(6)]
TAGGED: dict[str, Any] = {
    "tokens": [sentence(n, 1 + 2 * n) for n in range(6)],
    "label": [[0] * (1 + 2 * n) for n in range(6)],
}
OTHERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "answers": (Answers(), AutoModelForCausalLM, {"text": TEXTS, "label": ["w1 w2"] * 6}),
    "causal": (Causal(), AutoModelForCausalLM, {"text": TEXTS[1:]}),
    "tokens": (Tokens(tags=("a", "b", "c")), AutoModelForTokenClassification, TAGGED),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        (f, n) for f in CONFIGS for n in OTHERS if (f, n) != ("opt", "tokens")
    ],  # there is no such class
)
def test_padding_changes_nothing_that_other_kinds_predict(
    family: str, side: str, name: str
) -> None:
    kind, auto, columns = OTHERS[name]
    more = {"num_labels": 3} if name == "tokens" else {}
    tokenizer, model = tokenizer_that_pads(side), decoder(family, auto, **more)
    data = kind.encode(Dataset.from_dict(columns), tokenizer, 32)
    together = predict(model, data, kind, tokenizer).predicted
    alone = [
        predict(model, data.select([row]), kind, tokenizer).predicted for row in range(len(data))
    ]
    for row, (each,) in enumerate(alone):
        if name == "causal":
            assert together[row] == pytest.approx(each, abs=1e-4)
        else:
            assert together[row] == each


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_prediction_of_a_decoder(family: str, side: str) -> None:
    tokenizer = tokenizer_that_pads(side)
    model = decoder(family, AutoModelForSequenceClassification, num_labels=3)
    texts = [" ".join(f"w{(n * 7 + k) % 30}" for k in range(1 + 3 * n)) for n in range(8)]
    kind = Classification(classes=("a", "b", "c"))
    data = kind.encode(Dataset.from_dict({"text": texts, "label": [0] * len(texts)}), tokenizer, 32)
    together = predict(model, data, kind, tokenizer).scores
    alone = [
        predict(model, data.select([row]), kind, tokenizer).scores for row in range(len(texts))
    ]
    assert together is not None
    for row, each in enumerate(alone):
        assert each is not None
        assert together.array[row] == pytest.approx(each.array[0], abs=1e-5)
