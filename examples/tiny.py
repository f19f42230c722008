"""A tiny BERT with random weights, and sentences to train it on: no download, a second to make.

The other scripts import it. Replace its model with one of yours: nothing else changes.
"""

import csv
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

FILLERS = ("the", "a", "film", "story", "actor", "scene", "and", "plot")
WORDS = {"neg": ("awful", "boring", "weak"), "pos": ("great", "moving", "strong")}
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLERS, *WORDS["neg"], *WORDS["pos"])
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def make_model(num_labels: int = 2) -> BertForSequenceClassification:
    """Two layers of width 32 and a task head, the same weights each time."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.2,
        num_labels=num_labels,
        pad_token_id=0,
    )
    return BertForSequenceClassification(config).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=INPUTS, pad_token="[PAD]", unk_token="[UNK]"
    )


def write_reviews(path: Path, rows: int = 120) -> Path:
    """A CSV file with the columns text and label; one word of each text tells its label."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for row in range(rows):
            label = ("neg", "pos")[row % 2]
            words = [*draw.choices(FILLERS, k=5), draw.choice(WORDS[label])]
            writer.writerow((" ".join(draw.sample(words, k=6)), label))
    return path
