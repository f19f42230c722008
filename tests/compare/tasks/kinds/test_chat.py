"""Chats: which tokens are the assistant's, how they are judged, compared and refused."""

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from deltakit.compare.api import run_plan
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.run.predict import predict
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks import ColumnNames, load_task
from deltakit.compare.tasks.kinds import Chat
from deltakit.compare.tasks.kinds.chat import masked
from deltakit.compare.tasks.sources.hub import hub_task
from deltakit.errors import InvalidConfig
from deltakit.models.source import BaseChoice, find_model

ANSWERS = {"goal": "team", "phone": "code", "bank": "market price"}
PLAIN = (
    "{% for m in messages %}"
    "{{ '[CLS]' if loop.first else '' }}{{ m['role'] }} : {{ m['content'] }} [SEP]\n"
    "{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
TAGGED = (
    "{% for m in messages %}{{ '[CLS]' if loop.first else '' }}{{ m['role'] }} : "
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} [SEP]{% endgeneration %}"
    "{% else %}{{ m['content'] }} [SEP]{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
CHANGING = PLAIN.replace("m['content']", "m['content'] if loop.last else 'the'")
REFUSING = "{{ raise_exception('roles must alternate') }}"


def said(*turns: str) -> list[dict[str, str]]:
    """Messages of the user and the assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]


def chat(draw: random.Random) -> list[dict[str, str]]:
    words = [draw.choice(list(ANSWERS)) for _ in range(draw.randrange(1, 3))]
    turns = [turn for word in words for turn in (f"the {word} of film", ANSWERS[word])]
    return said(*turns)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace) -> Path:
    root = tmp_path_factory.mktemp("chats")
    for split, n in (("train", 48), ("validation", 12), ("test", 16)):
        draw = random.Random(f"chats {split}")
        make.lines(root / f"{split}.jsonl", [{"messages": chat(draw)} for _ in range(n)])
    return root


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory, decoder: Path) -> Callable[[str], Path]:
    """The tiny decoder with a chat template."""
    root = tmp_path_factory.mktemp("talkers")

    def with_template(template: str) -> Path:
        place = root / f"{abs(hash(template))}"
        if not place.exists():
            place.mkdir()
            for file in decoder.iterdir():
                (place / file.name).write_bytes(file.read_bytes())
            tokenizer = find_model(str(place)).tokenizer()
            tokenizer.chat_template = template
            tokenizer.save_pretrained(place)
        return place

    return with_template


@pytest.fixture
def ready(talker: Callable[[str], Path], folder: Path) -> SimpleNamespace:
    task = load_task(str(folder))
    source = find_model(str(talker(PLAIN)))
    tokenizer = source.tokenizer()
    torch.manual_seed(0)
    base = BaseChoice(name="fp32")
    model = source.load(base, task.kind.head, tokenizer.pad_token_id).model.eval()
    data = task.kind.encode(task.test, tokenizer, 40)
    return SimpleNamespace(task=task, kind=task.kind, model=model, tokenizer=tokenizer, data=data)


# -------------------------------------------------------------------------- whose tokens are these


def test_the_mask_is_that_of_a_template_with_tags(talker: Callable[[str], Path]) -> None:
    plain, tagged = (find_model(str(talker(each))).tokenizer() for each in (PLAIN, TAGGED))
    for turns in (("the goal", "team"), ("a film", "the end\nof story", "goal", "team market")):
        ids, mask = masked(said(*turns), plain)
        assert (ids, mask) == masked(said(*turns), tagged)
        whole = plain.apply_chat_template(said(*turns), tokenize=True, return_dict=True)
        assert ids == whole["input_ids"]
        own = plain.decode([token for token, mine in zip(ids, mask, strict=True) if mine])
        assert own.split() == [word for turn in turns[1::2] for word in (*turn.split(), "[SEP]")]


def test_the_loss_is_taken_of_all_turns_of_the_assistant(ready: SimpleNamespace) -> None:
    it = ready
    for row, example in zip(it.data, it.task.test, strict=True):
        messages = [*example["messages"], ["assistant", example["label"]]]
        aims = [token for token in row["labels"] if token != -100]
        expected = [
            word
            for role, content in messages
            if role == "assistant"
            for word in (*content.split(), "[SEP]")
        ]
        assert it.tokenizer.convert_ids_to_tokens(aims) == expected
        assert row["input_ids"] == [*row["before"], *row["answer"]]
        assert row["answer"] == row["labels"][-len(row["answer"]) :]
        assert set(row["stops"]) == {it.tokenizer.eos_token_id}
    assert {len(example["messages"]) for example in it.task.test} == {1, 3}


def test_scores_are_of_the_assistants_tokens(ready: SimpleNamespace) -> None:
    it = ready
    found = predict(it.model, it.data, it.kind, it.tokenizer)
    sums = [0.0, 0.0]
    for row, (nats, tokens, _) in zip(it.data, found.predicted, strict=True):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = it.model(ids).logits[0, :-1]
        expected = cross_entropy(logits, labels[1:], reduction="sum").item()
        assert nats == pytest.approx(expected, rel=1e-4)
        assert tokens == sum(label != -100 for label in row["labels"])
        sums = [sums[0] + nats, sums[1] + tokens]
    perplexity = METRICS.get("answer_perplexity").value(found)
    assert perplexity == pytest.approx(math.exp(sums[0] / sums[1]))
    hits = [made[2] == true for made, true in zip(found.predicted, found.labels, strict=True)]
    assert METRICS.get("answer_match").value(found) == sum(hits) / len(hits)


def test_neither_batches_nor_padding_change_a_chat(
    ready: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = ready
    together = predict(it.model, it.data, it.kind, it.tokenizer)
    monkeypatch.setattr(Chat, "batch_size", 1)
    alone = predict(it.model, it.data, it.kind, it.tokenizer)
    assert together.labels == alone.labels
    for found, expected in zip(together.predicted, alone.predicted, strict=True):
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert found[1:] == expected[1:]


def test_a_long_chat_loses_its_beginning(ready: SimpleNamespace) -> None:
    it = ready
    short = it.kind.encode(it.task.test, it.tokenizer, 12)
    for whole, cut in zip(it.data, short, strict=True):
        over = max(0, len(whole["input_ids"]) - 12)
        assert cut["lost"] == (over + 1 if over else 0)
        assert cut["input_ids"][0] == it.tokenizer.bos_token_id
        assert cut["input_ids"][1:] == whole["input_ids"][cut["lost"] :][-11:]
        assert cut["answer"] == whole["answer"]
    with pytest.raises(InvalidConfig, match=r"leaves no room .* Raise --max-length"):
        it.kind.encode(it.task.test, it.tokenizer, 3)


def test_the_constant_row_knows_the_frequencies_of_the_answers(ready: SimpleNamespace) -> None:
    it = ready
    constant = it.kind.majority_prediction(it.data, it.data, it.tokenizer)
    aims = [token for row in it.data["labels"] for token in row if token != -100]
    size = len(aims) + len(it.tokenizer)
    nats, tokens, usual = constant.values[0]
    first = [token for token in it.data[0]["labels"] if token != -100]
    assert nats == pytest.approx(-sum(math.log((1 + aims.count(t)) / size) for t in first))
    assert (tokens, usual) == (len(first), max(ANSWERS.values(), key=it.data["truth"].count))


# ------------------------------------------------------------------------------------- whole runs


def test_chats_are_learned_resumed_and_reported(
    asked: Any, talker: Callable[[str], Path], folder: Path, trainings: Any, tmp_path: Path
) -> None:
    model = str(talker(PLAIN))
    request = asked("lora", task=str(folder), model=model, epochs=4.0, batch_size=8, max_length=32)
    first = run_plan(build_plan(request), tmp_path / "run")
    assert first.failures == ()
    rows = {row.method: row for row in first.results}
    assert {row.metric for row in first.results} == {"answer_perplexity"}
    assert (rows["full"].score or 99) < (rows["head"].score or 0)
    count = trainings.count
    again = run_plan(build_plan(request), tmp_path / "run")
    assert (again.reused, trainings.count) == (len(first.results), count)
    assert again.predictions == first.predictions


def test_the_shipped_chats_are_right_and_run(
    asked: Any, talker: Callable[[str], Path], tmp_path: Path
) -> None:
    task = load_task("counting")
    for row in (row for split in (task.train, task.validation, task.test) for row in split):
        numbers = [
            [int(word) for word in content.split() if word.isdigit()]
            for _, content in (*row["messages"], ("assistant", row["label"]))
        ]
        (had, more), (first,), (less,), (last,) = numbers
        assert (first, last) == (had + more, had + more - less)
    assert not task.notes and len(task.train) == 352
    limits = {"max_train_samples": 16, "max_eval_samples": 8, "epochs": 1.0, "max_length": 40}
    request = asked("head", task="counting", model=str(talker(PLAIN)), **limits)
    assert run_plan(build_plan(request), tmp_path / "run").failures == ()


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (None, r"no chat template.*--model, such as smollm2, or set tokenizer\.chat_template"),
        (CHANGING, r"writes earlier turns in another way.*generation tags"),
        (REFUSING, r"refuses the chat that starts with .*: roles must alternate\. Correct"),
    ],
)
def test_a_model_that_cannot_chat_is_refused(
    template: str | None,
    match: str,
    asked: Any,
    decoder: Path,
    talker: Callable[[str], Path],
    folder: Path,
) -> None:
    model = decoder if template is None else talker(template)
    with pytest.raises(InvalidConfig, match=match) as caught:
        build_plan(asked("head", task=str(folder), model=str(model), max_length=32))
    assert "\n" not in str(caught.value)


def test_an_encoder_cannot_chat(bert: Path, folder: Path, deltakit: Callable[..., Any]) -> None:
    ended = deltakit("plan", "--methods", "head", "--task", folder, "--model", bert)
    assert ended.code == 2 and "(bert) cannot continue a text" in ended.line


CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        (said("hello"), r"row 21: the chat has no turn of the assistant; it starts with 'hello'\."),
        (said("hello", " "), r"row 21: the chat has no text in its last turn of the assistant"),
        (said("hello", "x")[1:], r"row 21: .* no turn of the assistant after another message"),
        ([], r"row 21: the column 'messages' holds \[\], not a list of messages"),
        ("hello", r"row 21: the column 'messages' holds 'hello', not a list of messages"),
        ("[" * 200_000, r"row 21: the column 'messages' holds '\[\[.*, not a list of messages"),
        ([{"role": "user"}], r"row 21: .* each of which has the texts 'role' and 'content'"),
        ([*said("hello"), CALL], r"row 21: .*, not a list of messages"),
    ],
)
def test_chats_that_cannot_be_used(
    messages: Sequence[Any] | str, match: str, make: SimpleNamespace, tmp_path: Path
) -> None:
    rows = [{"messages": said(f"ask {n}", "yes")} for n in range(20)]
    file = make.lines(tmp_path / "data.jsonl", [*rows, {"messages": messages}])
    with pytest.raises(InvalidConfig, match=match) as caught:
        load_task(str(file))
    assert "\n" not in str(caught.value)


def test_a_chat_without_an_assistant_ends_the_command(
    make: SimpleNamespace, deltakit: Callable[..., Any], decoder: Path, tmp_path: Path
) -> None:
    file = make.lines(tmp_path / "data.jsonl", [{"messages": said("hello")}] * 4)
    ended = deltakit("compare", "--methods", "lora", "--task", file, "--model", decoder)
    assert ended.code == 2 and "row 1: the chat has no turn of the assistant" in ended.line
    good = make.lines(tmp_path / "good.jsonl", [{"messages": said(f"{n}", "a")} for n in range(9)])
    ended = deltakit("compare", "--methods", "lora", "--task", good, "--model", decoder)
    assert ended.code == 2 and "no chat template" in ended.line


def test_an_answer_that_does_not_fit_is_one_line(
    make: SimpleNamespace,
    deltakit: Callable[..., Any],
    talker: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    rows = [{"messages": said(f"{n}", "film " * 60)} for n in range(9)]
    file = make.lines(tmp_path / "data.jsonl", rows)
    given = ("--methods", "head", "--task", file, "--model", talker(PLAIN), "--max-length", 40)
    ended = deltakit("plan", *given)
    assert "has 61 tokens and leaves no room for its prompt in 40" in ended.line


def test_what_is_told_of_chats(make: SimpleNamespace, tmp_path: Path) -> None:
    rows = [{"messages": said(f"ask {n}", "yes\nsir")} for n in range(20)]
    other, longer = {"messages": said("ask 1", "no")}, {"messages": said("a", "b", "c")}
    make.lines(tmp_path / "train.jsonl", [*rows, other, longer])
    for split in ("validation", "test"):
        make.lines(tmp_path / f"{split}.jsonl", [{"messages": said("ask 2", "no")}, rows[3]])
    task = load_task(str(tmp_path))
    notes = " ".join(task.notes)
    assert "train: 1 texts occur with different labels, the first in rows 2, 21" in notes
    assert "test: 2 of 2 examples have a text that is in train too, 1 of them with" in notes
    assert "train: 1 messages behind the last turn of the assistant were left out, of 1" in notes
    assert task.kind.metrics == ("answer_perplexity", "answer_match")
    make.lines(tmp_path / "test.jsonl", [{"messages": said("ask", "long " * 20)}])
    assert load_task(str(tmp_path)).kind.metrics == ("answer_perplexity",)


def test_messages_as_json_in_a_table(make: SimpleNamespace, tmp_path: Path) -> None:
    rows = [{"messages": json.dumps(said(f"ask {n}", "yes"))} for n in range(20)]
    task = load_task(str(make.rows(tmp_path / "data.csv", rows)))
    assert task.kind == Chat(short=True)
    assert task.test[0]["messages"][0][1].startswith("ask ")


def test_chats_from_the_hub() -> None:
    whole = Dataset.from_list([{"messages": said(f"ask {n}", "yes"), "id": n} for n in range(40)])
    splits = {"train": whole, "test": whole.select(range(4))}
    task = hub_task("some/chats", splits, ColumnNames())
    assert task.kind == Chat(short=True) and len(task.test) == 4
    assert any("of 4 examples have a text that is in train too" in n for n in task.notes)


@pytest.mark.slow
def test_chats_on_four_bits(
    asked: Any, talker: Callable[[str], Path], folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    limits = {"max_train_samples": 16, "max_eval_samples": 8, "epochs": 1.0, "max_length": 32}
    model = str(talker(PLAIN))
    request = asked("lora", task=str(folder), model=model, bases=("nf4",), **limits)
    assert run_plan(build_plan(request), tmp_path / "run").failures == ()


def test_columns_are_not_named(folder: Path, deltakit: Callable[..., Any]) -> None:
    given = ("--kind", "chat", "--text-column", "messages")
    ended = deltakit("plan", "--methods", "head", "--task", folder, *given)
    assert ended.code == 2 and "not for the kind 'chat', which takes none of them" in ended.line
