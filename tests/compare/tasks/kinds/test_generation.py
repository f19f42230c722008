"""Texts that a model writes, by decoders and encoder-decoders: asked, judged, compared, refused."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.api import run_plan
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.result import Predictions
from deltakit.compare.run.predict import predict
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks import ColumnNames, load_task
from deltakit.compare.tasks.kinds import Answers, Generation
from deltakit.compare.tasks.kinds.written import EncoderDecoder
from deltakit.compare.tasks.sources.hub import hub_task
from deltakit.errors import InvalidConfig, MissingExtra
from deltakit.models.source import BaseChoice, find_model

SLOW = pytest.mark.slow
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
    "t5": {
        "d_ff": 32,
        "d_kv": 4,
        "num_decoder_layers": 2,
        "pad_token_id": 0,
        "eos_token_id": 3,
        "decoder_start_token_id": 0,
    }
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
        tokenizer = source.tokenizer()
        torch.manual_seed(0)
        config = SimpleNamespace(is_encoder_decoder=family in CONFIGS)
        kind = Generation(beams=beams).for_model(config)
        model = source.load(FP32, kind.head, tokenizer.pad_token_id).model
        with torch.no_grad():  # far enough apart that not all rows get one text
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.7)
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


@pytest.mark.parametrize("family", ["t5", "bart", pytest.param("mbart", marks=pytest.mark.slow)])
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


def test_beams_change_the_text_and_the_plan(ready: Callable[..., SimpleNamespace]) -> None:
    greedy, search = ready("t5"), ready("t5", beams=3)
    texts = [predict(it.model, it.data, it.kind, it.tokenizer).predicted for it in (greedy, search)]
    assert texts[0] != texts[1]
    assert (greedy.kind.identity, search.kind.identity) == ((), ("3 beams",))


@pytest.mark.parametrize("family", CONFIGS)
def test_the_model_shifts_the_labels_of_an_encoder_decoder(
    family: str, ready: Callable[..., SimpleNamespace]
) -> None:
    it = ready(family)
    rows = list(it.data)
    batch = it.kind.collate(rows, it.tokenizer)
    for row, labels in zip(rows, batch["labels"].tolist(), strict=True):
        plain = it.tokenizer(row["truth"])["input_ids"]
        assert row["labels"] == plain and plain[-1] == it.tokenizer.eos_token_id
        assert labels == plain + [-100] * (len(labels) - len(plain))
    with torch.no_grad():
        whole = it.model(**batch).loss
        start = it.model.prepare_decoder_input_ids_from_labels(batch["labels"])
        assert set(start[:, 0].tolist()) == {it.model.generation_config.decoder_start_token_id}
        sums, tokens = 0.0, 0
        for row in rows:
            alone = it.kind.collate([row], it.tokenizer)
            sums += float(it.model(**alone).loss) * len(row["labels"])
            tokens += len(row["labels"])
    assert float(whole) == pytest.approx(sums / tokens, rel=1e-4)
    timed = it.kind.without_labels(batch)
    assert set(timed) == {"input_ids", "attention_mask", "decoder_input_ids"}
    assert (timed["decoder_input_ids"] >= 0).all()


def test_a_decoder_continues_behind_a_line_break(ready: Callable[..., SimpleNamespace]) -> None:
    it = ready("decoder")
    assert it.kind.writer.prompt("a b ", it.kind.separator) == "a b\n"
    row = it.data[0]
    end, size = it.tokenizer.eos_token_id, len(row["answer"])
    assert row["labels"] == [-100] * (len(row["input_ids"]) - size) + row["answer"]
    assert row["answer"][-1] == end and row["before"] == row["input_ids"][:-size]


@pytest.mark.parametrize(("family", "part"), [("t5", "end"), ("decoder", "beginning")])
def test_a_long_source_is_cut_and_told(
    family: str,
    part: str,
    asked: Any,
    models: dict[str, Path],
    make: SimpleNamespace,
    tmp_path: Path,
) -> None:
    for split in ("train", "validation", "test"):
        rows = [{"source": "film " * n + "goal", "target": "phone"} for n in range(9)]
        make.lines(tmp_path / "long" / f"{split}.jsonl", rows)
    task, model = str(tmp_path / "long"), str(models[family])
    plan = build_plan(asked("head", task=task, model=model, max_length=8))
    tokenizer = find_model(model).tokenizer()
    data = plan.task.kind.encode(plan.task.test, tokenizer, 8)
    lost, longest = [each for each in data["lost"] if each], max(map(len, data["input_ids"]))
    assert longest == 8 and max(lost) == (9 + 2 - 8 if part == "end" else 9 + 1 + 2 - 8)
    assert lost == list(range(1, max(lost) + 1))
    assert any(
        f"test: {len(lost)} of 9 texts lose their {part}, up to {max(lost)} tokens (--max" in note
        for note in plan.notes
    )
    with pytest.raises(InvalidConfig, match=r"tokens and leaves no room .* Raise --max-length"):
        plan.task.kind.encode(plan.task.test, tokenizer, 2)


def test_the_copy_of_the_source_is_the_constant_row(
    ready: Callable[..., SimpleNamespace],
) -> None:
    it = ready("t5")
    found = it.kind.majority_prediction(it.data, it.data, it.tokenizer)
    assert found.values == it.task.test["text"] and found.scores is None


# ------------------------------------------------------------------------------------ whole runs


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart", "decoder"])
def test_generation_is_learned_resumed_and_reported(
    family: str, asked: Any, models: dict[str, Path], folder: Path, trainings: Any, tmp_path: Path
) -> None:
    request = asked(
        "lora",
        task=str(folder),
        model=str(models[family]),
        beams=2,
        epochs=6.0,
        batch_size=8,
        latency=("1x8",),
    )
    first = run_plan(build_plan(request), tmp_path / "run")
    assert first.failures == ()
    rows = {row.method: row for row in first.results}
    assert (rows["full"].score or 0) > (rows["head"].score or 0)
    assert (tmp_path / "run" / "table.md").read_text(encoding="utf-8").count("ROUGE-L")
    count = trainings.count
    again = run_plan(build_plan(request), tmp_path / "run")
    assert (again.reused, trainings.count) == (len(first.results), count)
    assert again.predictions == first.predictions


@pytest.mark.parametrize("family", ["t5", pytest.param("mbart", marks=SLOW)])
def test_an_encoder_decoder_takes_answers_and_a_fusion(
    family: str, asked: Any, models: dict[str, Path], make: SimpleNamespace, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"the {word} {n}", "answer": PAIRS[word]} for word in PAIRS for n in range(9)
    ]
    file = make.lines(tmp_path / "answers.jsonl", rows)
    request = asked("fusion", task=str(file), model=str(models[family]), epochs=1.0)
    plan = build_plan(request)
    assert isinstance(plan.task.kind, Answers)
    assert isinstance(plan.task.kind.writer, EncoderDecoder)
    assert run_plan(plan, tmp_path / "run").failures == ()


@pytest.mark.parametrize("family", ["t5", pytest.param("decoder", marks=SLOW)])
def test_the_shipped_sentences_are_rewritten(
    family: str, asked: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    limits = {"max_train_samples": 16, "max_eval_samples": 8, "epochs": 1.0, "max_length": 38}
    request = asked("head", task="passive", model=str(models[family]), beams=2, **limits)
    assert run_plan(build_plan(request), tmp_path / "run").failures == ()


def test_shipped_targets_are_right_and_no_source_is_twice() -> None:
    task = load_task("passive")
    rows = [row for split in (task.train, task.validation, task.test) for row in split]
    assert len({row["text"] for row in rows}) == len(rows) == 1_620
    assert {
        "text": "The judge stole cakes after lunch.",
        "label": "Cakes were stolen by the judge after lunch.",
    } in rows
    words = [sorted(row[side].lower().strip(".").split()) for row in rows for side in row]
    assert all(" by the " in row["label"] for row in rows) and min(map(len, words)) > 4
    assert not task.notes


# --------------------------------------------------------------------------------------- metrics


def _written(draw: random.Random, n: int = 40) -> Predictions:
    words = ("the", "cats", "sat", "running", "home", "away", "dogs")
    true = [" ".join(draw.choices(words, k=draw.randrange(1, 9))) for _ in range(n)]
    made = [" ".join(w if draw.random() < 0.8 else "cat" for w in text.split()) for text in true]
    made[0], made[1] = "", "first line\nsecond line"
    return Predictions(labels=tuple(true), predicted=tuple(made), scores=None, classes=())


def test_scores_are_those_of_their_packages() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    found = _written(random.Random(0))
    made, true = [[*map(str, each)] for each in (found.predicted, found.labels)]
    bleu, chrf = sacrebleu.corpus_bleu(made, [true]), sacrebleu.corpus_chrf(made, [true])
    assert METRICS.get("bleu").value(found) == pytest.approx(bleu.score / 100)
    assert METRICS.get("chrf").value(found) == pytest.approx(chrf.score / 100)
    for form in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        scorer = rouge_scorer.RougeScorer([form], use_stemmer=True)
        each = [scorer.score(*pair)[form].fmeasure for pair in zip(true, made, strict=True)]
        assert METRICS.get(form).value(found) == pytest.approx(np.mean(each))
        low, high = METRICS.get(form).interval(found)
        assert 0 <= low < np.mean(each) < high <= 1


def test_the_bootstrap_of_a_corpus_score_scores_each_resample_as_a_corpus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    found = _written(random.Random(1))
    metric: Any = METRICS.get("chrf")
    rows = np.random.default_rng(0).integers(40, size=40)
    sums = np.bincount(rows, minlength=40).astype(float) @ metric.counts(found)
    made, true = ([each[row] for row in rows] for each in (found.predicted, found.labels))
    expected = sacrebleu.corpus_chrf(made, [true]).score / 100
    assert float(metric.ratio(sums)) == pytest.approx(expected)
    low, high = metric.interval(found)
    assert low < metric.value(found) < high


def test_a_metric_without_its_package_is_refused_before_training(
    asked: Any, models: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltakit.compare.stats.metric.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"'rougeL' needs .*'rouge_score'\. .*\[generation\]"):
        build_plan(asked("head", task=str(folder), model=str(models["t5"])))
    plan = build_plan(
        asked("head", task=str(folder), model=str(models["t5"]), metric="exact_match")
    )
    assert plan.task.metric == "exact_match"


# ------------------------------------------------------------------------------ columns, refusals


def test_columns_by_their_usual_names(make: SimpleNamespace, tmp_path: Path) -> None:
    def kind_of(names: ColumnNames | None = None, **columns: str) -> Any:
        rows = [{key: f"{text} {n}" for key, text in columns.items()} for n in range(30)]
        return load_task(str(make.lines(tmp_path / "data.jsonl", rows)), names)

    for text, label in (("document", "summary"), ("text", "summary"), ("input", "output")):
        data = kind_of(**{text: "long", label: "a\nb"})
        assert data.kind == Generation() and data.test[0]["label"].startswith("a\nb ")
    with pytest.raises(InvalidConfig, match=r"too few examples of class"):
        kind_of(text="t", label="l", summary="s")
    with pytest.raises(InvalidConfig, match="no column 'label'"):
        kind_of(instruction="i", input="x", output="y", text="t")
    both = {"document": "d", "text": "t", "summary": "s"}
    with pytest.raises(InvalidConfig, match=r"several sources and targets: .*--text-column"):
        kind_of(**both)
    assert kind_of(ColumnNames(text="text"), **both).test[0]["text"].startswith("t ")


def test_summaries_from_the_hub() -> None:
    rows = [{"document": f"long {n}", "summary": f"short\n{n}", "id": n} for n in range(40)]
    rows[3]["summary"] = None
    task = hub_task("some/news", {"train": Dataset.from_list(rows)}, ColumnNames())
    assert task.kind == Generation()
    assert {row["label"] for row in task.test} <= {f"short\n{n}" for n in range(40)}
    assert any("train: 1 rows without a text or a label were left out" in n for n in task.notes)
    assert any("'document'" in note for note in task.notes)


def test_conflicts_and_leaks_are_told(make: SimpleNamespace, tmp_path: Path) -> None:
    rows = [{"source": f"s {n}", "target": f"t {n}"} for n in range(20)]
    make.lines(tmp_path / "train.jsonl", [*rows, {"source": "s 1", "target": "other"}])
    for split in ("validation", "test"):
        make.lines(tmp_path / f"{split}.jsonl", [{"source": "s 2", "target": "new"}, rows[3]])
    notes = " ".join(load_task(str(tmp_path)).notes)
    assert "train: 1 texts occur with different labels, the first in rows 2, 21" in notes
    assert "test: 2 of 2 examples have a text that is in train too, 1 of them with" in notes


@pytest.mark.parametrize("target", [None, " ", ["a"]])
def test_a_source_without_a_target_is_refused(
    target: Any, make: SimpleNamespace, tmp_path: Path
) -> None:
    rows = [{"source": f"s {n}", "target": f"t {n}"} for n in range(20)]
    file = make.lines(tmp_path / "data.jsonl", [*rows, {"source": "s", "target": target}])
    with pytest.raises(InvalidConfig, match=r"row 21: the label column 'target' .*answer"):
        load_task(str(file))


def test_an_encoder_cannot_write(
    asked: Any, bert: Path, folder: Path, models: dict[str, Path], deltakit: Any
) -> None:
    with pytest.raises(InvalidConfig, match=r"\(bert\) cannot continue a text: .*--model"):
        build_plan(asked("head", task=str(folder), model=str(bert)))
    ended = deltakit("plan", "--methods", "head", "--task", folder, "--model", bert)
    assert ended.code == 2 and "\n" not in ended.line
    causal = ("plan", "--methods", "head", "--task", folder, "--kind", "causal")
    ended = deltakit(*causal, "--text-column", "source", "--model", models["t5"])
    assert ended.code == 2 and "cannot continue a text" in ended.line


def test_a_model_that_does_not_know_how_a_target_begins_is_refused(
    asked: Any, models: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    shutil.copytree(models["t5"], place)
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    del config["decoder_start_token_id"]
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        InvalidConfig, match=r"no decoder_start_token_id.*Set it and save"
    ) as caught:
        build_plan(asked("head", task=str(folder), model=str(place)))
    assert "\n" not in str(caught.value)


def test_beams_are_for_texts_that_are_written(
    asked: Any, models: dict[str, Path], folder: Path, tasks: SimpleNamespace
) -> None:
    greedy, search = (
        build_plan(asked("head", task=str(folder), model=str(models["t5"]), beams=beams))
        for beams in (None, 4)
    )
    assert greedy.id != search.id and search.task.kind.description == "texts to write, 4 beams"
    with pytest.raises(InvalidConfig, match=r"--beams 4 is for .*answers, generation.*Leave"):
        build_plan(asked("head", beams=4))
    with pytest.raises(InvalidConfig, match="beams must be a whole number"):
        build_plan(asked("head", task=str(folder), model=str(models["t5"]), beams=0))


def test_a_source_without_a_token_has_nothing_to_write_behind() -> None:
    """Spaces have tokens, and a decoder's prompt ends before them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_ = Tokenizer(models.BPE({**letters, "<end>": len(letters)}, []))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_, eos_token="<end>")
    rows = Dataset.from_dict({"text": ["a", "   "], "label": ["yes", "no"]})
    for kind in (Answers(), Answers(writer=EncoderDecoder())):
        assert kind.encode(rows.select([0]), tokenizer, 12)[0]["before"]
    with pytest.raises(InvalidConfig, match="the text '   ' has no token for this model"):
        Answers().encode(rows, tokenizer, 12)
