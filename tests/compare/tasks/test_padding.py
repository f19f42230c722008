"""A text's prediction does not depend on the texts that are predicted with it."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from deltakit.compare.run.predict import predict
from deltakit.compare.tasks.kinds import Classification

CONFIGS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "opt": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
    | {"max_position_embeddings": 32, "word_embed_proj_dim": 16},
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"intermediate_size": 32},
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_prediction_of_a_decoder(family: str, side: str) -> None:
    words = {"[PAD]": 0, **{f"w{n}": n + 1 for n in range(30)}}
    text = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=text, pad_token="[PAD]", padding_side=side)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=31, num_labels=3, pad_token_id=0, **CONFIGS[family]
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" in name or "wpe" in name:
                parameter.copy_(torch.randn_like(parameter))
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
