"""A tiny BERT, and a task that it can learn, for choices that are really trained."""

import csv
import random
from pathlib import Path

import pytest
import torch

WORDS = {"neg": ("bad", "dull", "poor"), "pos": ("good", "fresh", "fine")}
FILLERS = ("the", "a", "film", "plot", "of", "and", "is", "was", "it", "one")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a tiny BERT with a whole-word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    words = [*SPECIAL, *FILLERS, *(word for each in WORDS.values() for word in each)]
    ids = {word: at for at, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task folder: one word of each sentence gives the class away."""
    folder = tmp_path_factory.mktemp("tasks") / "reviews"
    folder.mkdir()
    for split, number in (("train", 96), ("validation", 64), ("test", 80)):
        draw = random.Random(split)
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            for at in range(number):
                label = ("neg", "pos")[at % 2]
                words = [*draw.choices(FILLERS, k=draw.randrange(2, 8)), draw.choice(WORDS[label])]
                draw.shuffle(words)
                writer.writerow((" ".join(words), label))
    return folder


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DELTAKIT_CACHE", str(tmp_path / "cache"))
