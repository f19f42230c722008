"""A small data set for each kind of task, and a small T5 and BART that can write.

    python benchmarks/kinds.py kinds

writes ``names.conll``, ``passive.csv``, ``clefts.csv``, ``counting.jsonl``, ``rooms.json`` and
``endings.jsonl`` to the folder ``kinds``, and the models ``t5`` and ``bart``. Everything is made by
rule, with fixed seeds, and nothing is downloaded. The pictures are those of
``examples/digits_vit.py``.

The two models have about a million parameters. They are pre-trained to restore sentences of which
words are left out. The sentences in the passive voice have other agents than the task's, so the
models have the words of the task, and none of its targets.
"""

import csv
import json
import random
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from deltakit.compare.tasks.shipped import counting, entities, passive

SPECIAL = ("<pad>", "</s>", "<s>", "<mask>")
PAD, END, START = range(3)
OTHERS = ("king", "queen", "boy", "girl", "clerk", "cook", "guest", "guard", "sailor")
"""Agents of the sentences in the passive voice that the models are pre-trained on."""

# ---------------------------------------------------------------------------------------- data


def write_names(path: Path, sentences: int = 400) -> None:
    """Sentences of the task `entities`, a word and its tag a line."""
    draw = random.Random(0)
    lines = []
    for _ in range(sentences):
        words, tags = entities._sentence(draw, 1)
        lines += [f"{word} {tag}" for word, tag in zip(words, tags, strict=True)] + [""]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_pairs(path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Sentences and their targets, as columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("source", "target"))
        rows.writerows(pairs)


def clefts() -> Iterator[tuple[str, str]]:
    """The sentences of the task `passive`, with "It was ... who" as their targets."""
    for source, _ in passive._sentences():
        agent = source.split(" ")[1]
        yield source, source.replace(f"The {agent}", f"It was the {agent} who", 1)


def write_counting(path: Path) -> None:
    """The chats of the task `counting`, a line each."""
    chats = [[*before, ["assistant", answer]] for before, answer in counting._chats()]
    lines = [
        json.dumps({"messages": [{"role": role, "content": text} for role, text in chat]})
        for chat in chats
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


THINGS = ("books", "cups", "lamps", "keys", "coats", "maps")
ROOMS = ("kitchen", "garden", "garage", "office", "attic", "cellar")
PEOPLE = ("Ben", "Clara", "David", "Emma", "Frank", "Grace")
NUMBERS = ("two", "three", "four", "five")


def stories(number: int) -> Iterator[tuple[list[tuple[str, str, str]], str]]:
    """Who took what where, three times, and the sentences of it."""
    draw = random.Random(0)
    for _ in range(number):
        parts = zip(
            draw.sample(PEOPLE, 3),
            [f"{draw.choice(NUMBERS)} {thing}" for thing in draw.sample(THINGS, 3)],
            draw.sample(ROOMS, 3),
            strict=True,
        )
        told = list(parts)
        yield told, " ".join(f"{who} took {what} to the {room}." for who, what, room in told)


def write_rooms(path: Path, number: int = 480) -> None:
    """Questions about what somebody took, in SQuAD's format; a quarter has no answer."""
    draw, paragraphs = random.Random(1), []
    for at, (told, context) in enumerate(stories(number)):
        who, what, _ = draw.choice(told)
        absent = next(name for name in PEOPLE if name not in context)
        answers = [{"text": what, "answer_start": context.index(what)}] if at % 4 else []
        asked = {
            "id": str(at),
            "question": f"What did {who if at % 4 else absent} take?",
            "answers": answers,
            "is_impossible": not answers,
        }
        paragraphs.append({"context": context, "qas": [asked]})
    whole = {"version": "v2.0", "data": [{"title": "rooms", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(whole), encoding="utf-8")


def write_endings(path: Path, number: int = 480) -> None:
    """Sentences to end: with a room, and not with a thing or a name."""
    draw, lines = random.Random(1), []
    for told, context in stories(number):
        *_, room = told[-1]
        choices = [room, draw.choice(THINGS), draw.choice(PEOPLE)]
        draw.shuffle(choices)
        asked = context.removesuffix(f" {room}.").split(". ", 1)[1]
        row = {"question": asked, "choices": choices, "answer": choices.index(room)}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines), encoding="utf-8")


# -------------------------------------------------------------------------------------- models


def corpus() -> list[str]:
    """Sentences in the active voice, and sentences in the passive voice with other agents."""
    pairs = list(passive._sentences())
    agents = [word for word, _ in product(passive._AGENTS, range(len(pairs) // 9))]
    others = dict(zip(passive._AGENTS, OTHERS, strict=True))
    return [source for source, _ in pairs] + [
        target.replace(f"by the {agent} ", f"by the {others[agent]} ")
        for agent, (_, target) in zip(agents, pairs, strict=True)
    ]


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Pieces of bytes, of which most words of the texts are one."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel()
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=list(SPECIAL), initial_alphabet=alphabet
    )
    pieces.train_from_iterator(texts, trainer)
    pieces.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        pad_token="<pad>",
        eos_token="</s>",
        mask_token="<mask>",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


def small_models(words: int) -> dict[str, Any]:
    """An untrained T5 and BART."""
    t5 = T5Config(
        vocab_size=words, d_model=128, d_kv=32, d_ff=512, num_layers=3, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=END,
    )  # fmt: skip
    bart = BartConfig(
        vocab_size=words, d_model=128, encoder_layers=3, decoder_layers=3,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=512,
        decoder_ffn_dim=512, max_position_embeddings=64, dropout=0.0,
        decoder_start_token_id=START, bos_token_id=START, pad_token_id=PAD, eos_token_id=END,
        forced_eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return {"t5": T5ForConditionalGeneration(t5), "bart": BartForConditionalGeneration(bart)}


def holed(text: str, draw: random.Random) -> str:
    """The sentence with a third of its words left out."""
    words = text.split(" ")
    return " ".join("<mask>" if draw.random() < 1 / 3 else word for word in words)


def pretrain(model: Any, tokenizer: Any, texts: list[str], steps: int) -> float:
    """Trains a model to restore sentences; returns the last loss."""
    draw = random.Random(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, total_iters=steps)
    model.train()
    for _ in range(steps):
        whole = draw.sample(texts, 32)
        asked = tokenizer([holed(each, draw) for each in whole], padding=True, return_tensors="pt")
        wanted = tokenizer(whole, padding=True, return_tensors="pt")["input_ids"]
        loss = model(**asked, labels=wanted.masked_fill(wanted == PAD, -100)).loss
        loss.backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return loss.item()


def main(place: Path, steps: int) -> None:
    """Writes the data and the models."""
    place.mkdir(parents=True, exist_ok=True)
    write_names(place / "names.conll")
    write_pairs(place / "passive.csv", passive._sentences())
    write_pairs(place / "clefts.csv", clefts())
    write_counting(place / "counting.jsonl")
    write_rooms(place / "rooms.json")
    write_endings(place / "endings.jsonl")
    texts = corpus()
    targets = (target for _, target in (*passive._sentences(), *clefts()))
    tokenizer = tokenizer_of([*texts, *targets])
    for name, model in small_models(len(tokenizer)).items():
        last = pretrain(model, tokenizer, texts, steps)
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
        print(f"{name}: {model.num_parameters():,} parameters, loss {last:.2f} after {steps} steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]), steps=int(sys.argv[2]) if len(sys.argv) > 2 else 1500)
