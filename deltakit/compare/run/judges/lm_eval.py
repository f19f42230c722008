"""lm-eval, EleutherAI's evaluation harness: tasks for models that write texts."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltakit.compare.records.verdict import Verdict
from deltakit.compare.run.judges.base import Judge, JudgedModel, Questions, register_judge
from deltakit.errors import InvalidConfig, UnknownName, first_line, nearest

if TYPE_CHECKING:
    from torch import nn


@register_judge("lm-eval")
class LmEval(Judge):
    """EleutherAI's evaluation harness: tasks for decoders and encoder-decoders.

    A task is a name of the harness's (a task, a group, a tag) or the path of a task's YAML file.
    """

    package = "lm_eval"
    distribution = "lm_eval"
    install = 'pip install -e ".[lm-eval]"'
    loaded_for = frozenset({"causal", "seq2seq"})
    suits = "models that write texts"
    options = frozenset({"--limit", "--shots"})

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        manager = _manager(tasks)
        for task in tasks:
            if not _is_file(task) and task not in manager.all_tasks:
                raise UnknownName(
                    f"lm-eval has no task {task!r}.{nearest(task, manager.all_tasks)} "
                    "`lm-eval ls tasks` lists them; or give the path of a task's YAML file."
                )
            with _quiet():
                _load(manager, task)

    def judge(self, judged: JudgedModel, questions: Questions) -> Iterator[Verdict]:
        from lm_eval import simple_evaluate

        with _quiet():
            found = simple_evaluate(
                _model(judged, questions.batch_size),
                tasks=list(map(_spec, questions.tasks)),
                task_manager=_manager(questions.tasks),
                num_fewshot=questions.shots,
                limit=questions.limit,
                log_samples=False,
            )
        for task, scores in found["results"].items():
            yield from self._verdicts(task, scores, found, questions.merged)

    def _verdicts(
        self, task: str, scores: Mapping[str, Any], found: Mapping[str, Any], merged: bool
    ) -> Iterator[Verdict]:
        """The verdicts on one task; a metric's key is its name, a comma and the filter's."""
        number = found["n-samples"].get(task, {})
        for metric, filtered in (key.split(",", 1) for key in scores if "," in key):
            value, error = scores[f"{metric},{filtered}"], f"{metric}_stderr,{filtered}"
            if metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            yield Verdict(
                judge=self.name,
                version=self.version(),
                task=task,
                metric=metric if filtered == "none" else f"{metric} ({filtered})",
                value=float(value),
                stderr=_number(scores.get(error)),
                higher=found["higher_is_better"].get(task, {}).get(metric),
                merged=merged,
                examples=number.get("effective"),
                of=number.get("original"),
                shots=int(found["n-shot"].get(task, 0)),
            )


def _model(judged: JudgedModel, batch_size: int) -> Any:
    """The model as the harness asks it, its length that of the harness less what a delta takes."""
    from lm_eval.models.huggingface import HFLM

    causal = judged.task == "causal"
    given = {
        "pretrained": judged.model,
        "tokenizer": open_ended(judged.tokenizer) if causal else judged.tokenizer,
        "backend": judged.task,
        "batch_size": 1 if _reads_mask(judged.model) else batch_size,
    }
    model = HFLM(**given)
    if not judged.added:
        return model
    return HFLM(**given, max_length=model.max_length - judged.added)


def open_ended(tokenizer: Any) -> Any:
    """The tokenizer, or a copy of it that puts no token behind a text.

    The harness takes the tokens of a prompt for the first ones of the prompt with its answer. A
    token behind the prompt would take the place of the answer's first.

    Raises:
        InvalidConfig: the tokenizer has no table of what it puts around a text.
    """
    text = tokenizer("a", return_special_tokens_mask=True)
    ids, added = text["input_ids"], text["special_tokens_mask"]
    if not any(added[-1:]):
        return tokenizer
    if not tokenizer.is_fast:
        last = tokenizer.convert_ids_to_tokens(ids[-1])
        raise InvalidConfig(
            f"the tokenizer puts {last!r} behind every text, so lm-eval would ask for it in place "
            "of an answer. Save a tokenizer.json with the model that does not."
        )
    opened = copy.deepcopy(tokenizer)
    opened.backend_tokenizer.post_processor = _before(
        tokenizer, ids[: len(list(takewhile(bool, added)))]
    )
    return opened


def _before(tokenizer: Any, first: list[int]) -> Any:
    """What puts these tokens before a text, and nothing behind it."""
    from tokenizers.processors import TemplateProcessing

    names = tokenizer.convert_ids_to_tokens(first)
    known = list(zip(names, first, strict=True))
    return TemplateProcessing(single=[*names, "$A"], special_tokens=known)


def _number(value: object) -> float | None:
    """The number; the harness writes "N/A" where there is none."""
    return float(value) if isinstance(value, int | float) else None


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _spec(task: str) -> str:
    return str(Path(task).resolve()) if _is_file(task) else task


def _manager(tasks: tuple[str, ...]) -> Any:
    """The harness's table of tasks. Files need none of its own, and reading those takes long."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=not all(map(_is_file, tasks)))


def _load(manager: Any, task: str) -> None:
    """Reads a task and its data.

    Raises:
        InvalidConfig: it cannot be read.
    """
    if _is_file(task) and not Path(task).is_file():
        raise InvalidConfig(
            f"--tasks {task}: there is no such file. Give the path of a task's YAML "
            "file, or the name of a task of lm-eval's."
        )
    try:
        manager.load([_spec(task)])
    except Exception as error:  # any error of another library, or of a data set's
        raise InvalidConfig(
            f"lm-eval cannot load the task {task!r}: {type(error).__name__}: {first_line(error)}"
        ) from None


def _reads_mask(model: nn.Module) -> bool:
    """True if a delta reads the mask: the harness pads likelihoods' texts, and gives none."""
    from deltakit.core.delta import Delta, Reads

    deltas = (each for each in model.modules() if isinstance(each, Delta))
    return any(Reads.MASK in each.reads for each in deltas)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The harness's messages below an error are about a command of its own."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
