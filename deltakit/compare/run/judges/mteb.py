"""MTEB, the Massive Text Embedding Benchmark: tasks for encoders of texts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from deltakit.compare.records.verdict import Verdict
from deltakit.compare.run.judges.base import Judge, JudgedModel, Questions, register_judge
from deltakit.errors import InvalidConfig, UnknownName, first_line

if TYPE_CHECKING:
    from torch import Tensor


@register_judge("mteb")
class Mteb(Judge):
    """The Massive Text Embedding Benchmark: tasks for encoders of texts.

    The embedding of a text is the mean of its tokens' last hidden states. A task is a name of
    MTEB's, or of a task class in an imported file.
    """

    package = "mteb"
    distribution = "mteb"
    install = 'pip install -e ".[mteb]"'
    loaded_for = frozenset({"classify", "classify_tokens", "extract_spans"})
    suits = "encoders of texts"

    def check_model(self, name: str, task: str, config: Any) -> None:
        super().check_model(name, task, config)
        from transformers import MODEL_FOR_MASKED_LM_MAPPING

        if config.is_encoder_decoder or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise InvalidConfig(
                f"--with {self.name} judges {self.suits}, and {name!r} ({config.model_type}) is "
                "none: its tokens do not see those behind them. Evaluate a run of an encoder."
            )

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        for task in tasks:
            try:
                _task(task).load_data()
            except UnknownName:
                raise
            except Exception as error:  # any error of another library, or of a data set's
                raise InvalidConfig(
                    f"mteb cannot load the task {task!r}: {type(error).__name__}: "
                    f"{first_line(error)}"
                ) from None

    def judge(self, judged: JudgedModel, questions: Questions) -> Iterator[Verdict]:
        import mteb

        found = mteb.evaluate(
            _encoder(judged),
            list(map(_task, questions.tasks)),
            co2_tracker=False,
            encode_kwargs={"batch_size": questions.batch_size, "show_progress_bar": False},
            cache=None,
            show_progress_bar=False,
        )
        for result in found.task_results:
            yield Verdict(
                judge=self.name,
                version=self.version(),
                task=result.task_name,
                metric=_task(result.task_name).metadata.main_score,
                value=float(result.get_score()),
                stderr=_stderr(result),
                higher=True,
                merged=questions.merged,
            )


def _task(name: str) -> Any:
    """A fresh task of that name: one of an imported file, or MTEB's.

    Raises:
        UnknownName: there is none.
    """
    import mteb
    from mteb.abstasks import AbsTask

    own = {cls.metadata.name: cls for cls in _below(AbsTask) if "metadata" in vars(cls)}
    if name in own:
        return own[name]()
    try:
        return mteb.get_task(name)
    except KeyError as error:  # its message suggests a name
        _, _, near = str(error.args[0]).partition("not found.")
        raise UnknownName(
            f"mteb has no task {name!r}.{near} `mteb available-tasks` lists them; or give the name "
            "of a task class of your own, and its file with --import."
        ) from None


def _below(cls: type[Any]) -> Iterator[Any]:
    for each in cls.__subclasses__():
        yield each
        yield from _below(each)


def _stderr(result: Any) -> float | None:
    """The standard error of the mean over the task's own experiments, where it has several."""
    scores = [each for split in result.scores.values() for each in split]
    repeats = scores[0].get("scores_per_experiment") if len(scores) == 1 else None
    if not repeats or len(repeats) < 2:
        return None
    metric = _task(result.task_name).metadata.main_score
    values = [each[metric] for each in repeats]
    return statistics.stdev(values) / len(values) ** 0.5


def _encoder(judged: JudgedModel) -> Any:
    """The model as MTEB asks encoders."""
    import torch
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta

    class Encoder(AbsEncoder):
        """The mean of the tokens' last hidden states."""

        def __init__(self) -> None:
            self.model = judged.model
            self.mteb_model_meta = ModelMeta.create_empty()

        def encode(self, inputs: Iterable[Mapping[str, Any]], **kwargs: Any) -> Any:
            del kwargs
            with torch.inference_mode():
                return torch.cat([embeddings(judged, batch["text"]) for batch in inputs]).numpy()

    return Encoder()


def _positions(config: Any) -> int:
    """The tokens that the model was made for, where no table says so."""
    return int(vars(config).get("max_position_embeddings") or 512)


def embeddings(judged: JudgedModel, texts: list[str]) -> Tensor:
    """The mean of the last hidden states over each text's tokens, ``(texts, width)``.

    Raises:
        InvalidConfig: the delta adds states of its own between those of the tokens.
    """
    batch = judged.tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=min(judged.max_length, _positions(judged.model.config) - judged.added),
        return_tensors="pt",
    ).to(judged.model.device)
    states = judged.model(**batch, output_hidden_states=True).hidden_states[-1]
    real = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    if states.shape[1] != real.shape[1]:
        raise InvalidConfig(
            "the delta adds states of its own between those of the tokens, so a mean of the "
            "tokens' states is not known. Leave the row out (--rows)."
        )
    mean: Tensor = ((states * real).sum(1) / real.sum(1)).float().cpu()
    return mean
