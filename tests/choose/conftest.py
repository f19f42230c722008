"""Tiny models, and tasks that they can learn, for choices that are really trained."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_tasks import VOCABULARY, given_away, save_task  # noqa: E402


def save_model(folder: Path, kind: str, **sizes: Any) -> Path:
    """A checkpoint folder of a tiny model with a whole-word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    ids = {word: at for at, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(VOCABULARY),
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        pad_token_id=0,
        **sizes,
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    return save_model(folder, "bert", hidden_size=16, intermediate_size=32)


@pytest.fixture(scope="session")
def wide_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT whose matrices have a whole number of blocks of 64, as nf4 packs them."""
    folder = tmp_path_factory.mktemp("models") / "wide-bert"
    return save_model(folder, "bert", hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    return save_model(folder, "llama", hidden_size=16, intermediate_size=32, num_key_value_heads=2)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task folder: one word of each sentence gives the class away."""
    return save_task(tmp_path_factory.mktemp("tasks") / "reviews", given_away)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices that measure once and train shortly."""
    from tiny_choice import LIGHT

    for module, name, value in LIGHT:
        monkeypatch.setattr(module, name, value)


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DELTAKIT_CACHE", str(tmp_path / "cache"))
