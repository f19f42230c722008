"""The base class of kinds of task, such as classification, and their registry."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

from deltakit._registry import Registry
from deltakit.compare.records.result import Value
from deltakit.compare.tasks.data.columns import CellType, ColumnNames, RawSplit, RawTable
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.splits import Examples
from deltakit.errors import InvalidConfig
from deltakit.models.heads import Head
from deltakit.models.processor import Processor

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EncodedExample = Mapping[str, Any]
"""One example as `Kind.encode` leaves it."""
Batch = dict[str, "Tensor"]
"""Examples as a model takes them."""

K = TypeVar("K", bound="type[Kind]")


class Outputs(NamedTuple):
    """The outputs of a model, or of the constant prediction, for some examples.

    Attributes:
        values: the predictions.
        scores: the probabilities of the classes or labels, shape (examples, classes); None where
            the kind of task has none.
    """

    values: "Sequence[Value]"
    scores: "NDArray[Any] | Sequence[Sequence[float]] | None" = None


class ParsedLabels(NamedTuple):
    """Labels as a kind of task has read them, and notes for a reader of the scores."""

    kind: "Kind"
    splits: dict[str, Examples]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """A kind of task: its columns, its labels, the inputs of a model and its predictions.

    Attributes:
        name: its name for ``--kind``, given to `register_kind`.
        options: the options about columns that it has a use for.
        text_column: the usual name of the text column; None where it reads no text.
        label_column: the usual name of the label column; None where it reads no labels.
        inputs: the types of the columns that are not texts, by name. They are columns of
            the task's splits under the same names.
        batch_size: rows that are predicted at once.
        least_tokens: the fewest tokens of a text that the kind can use.
        precedence: kinds with a higher one are asked first whether data suits them.
    """

    name: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset({"--text-column", "--label-column"})
    text_column: ClassVar[str | None] = "text"
    inputs: ClassVar[Mapping[str, CellType]] = {}
    label_column: ClassVar[str | None] = "label"
    batch_size: ClassVar[int] = 64
    least_tokens: ClassVar[int] = 1
    precedence: ClassVar[int] = 0

    # ------------------------------------------------------------------------- reading the labels

    @classmethod
    def matches(cls, columns: Columns, asked: ColumnNames) -> bool:
        """True if the training split looks like this kind. The first kind that matches is taken."""
        del columns, asked
        return False

    @classmethod
    def columns_in(cls, columns: Columns, asked: ColumnNames) -> tuple[str | None, str | None]:
        """The names of the text and the label column, the asked ones before the usual ones."""
        del columns
        return asked.text or cls.text_column, asked.label or cls.label_column

    @classmethod
    def prepared(cls, table: RawTable, names: ColumnNames) -> RawTable:
        """One split as it was read, with the columns under the names that the kind reads.

        Raises:
            InvalidConfig: a column is missing.
        """
        del names
        return table

    @classmethod
    @abstractmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        """Reads the labels of all splits; "train" is one of them.

        Args:
            splits: as they were read.
            classes: the names of the labels, where the source fixes them.

        Raises:
            InvalidConfig: labels that are not of this kind.
        """

    @property
    @abstractmethod
    def description(self) -> str:
        """The kind in a few words."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes or labels, in the order of their ids; none by default."""
        return ()

    @property
    def identity(self) -> tuple[str, ...]:
        """The parts of it that change a score, in addition to the examples."""
        return self.labels

    def missing_classes(self, before: Iterable[Value], after: Iterable[Value]) -> tuple[str, ...]:
        """The classes with training examples before, and without any after."""
        del before, after
        return ()

    # ------------------------------------------------------------------------- asking the model

    def for_model(self, config: Any) -> Self:
        """The kind as a model with this configuration is asked; by default no model differs."""
        del config
        return self

    @property
    @abstractmethod
    def head(self) -> Head:
        """The head that the model is loaded with."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """The metrics that fit, the usual one first."""

    def check_tokenizer(self, model: str, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raises `InvalidConfig` for a tokenizer of `model` that the kind cannot use."""
        del model, tokenizer

    @abstractmethod
    def encode(self, data: "Dataset", processor: Processor, max_length: int) -> "Dataset":
        """The examples as the model's inputs, not padded yet.

        The processor is a tokenizer or an image processor, as the head reads. A kind names the
        argument by what it takes, so callers give it by its place.

        Columns are those of the model's inputs, ``labels`` (what training aims at), ``truth`` (what
        predictions are judged by) and whatever `predict` needs.
        """

    @property
    def cut(self) -> str | None:
        """The part that a long text loses, in words.

        `encode` then counts its tokens in the column ``lost``. None where it does not.
        """
        return None

    def notes(self, encoded: "Dataset") -> tuple[str, ...]:
        """Notes for a reader of the scores on an encoded split, such as how much was cut off."""
        del encoded
        return ()

    def size(self, example: EncodedExample) -> int:
        """The size of an encoded example, by which batches are made: by default its tokens."""
        return len(example["input_ids"])

    @abstractmethod
    def collate(self, rows: Sequence[EncodedExample], processor: Processor) -> Batch:
        """Encoded rows as one padded batch with its labels."""

    def without_labels(self, batch: Batch) -> Batch:
        """The batch for a forward pass that is timed."""
        return {name: each for name, each in batch.items() if name != "labels"}

    @abstractmethod
    def predict(
        self,
        model: "PreTrainedModel",
        rows: Sequence[EncodedExample],
        processor: Processor,
    ) -> Outputs:
        """The model's predictions for encoded rows, in their order.

        Padding does not change a row's prediction.
        """

    def majority_prediction(
        self, train: "Dataset", test: "Dataset", processor: Processor
    ) -> Outputs:
        """The prediction for each encoded test row that does not depend on the row.

        By default it is the most frequent label of train, and of equally frequent ones the first
        in order. Its scores are `label_frequencies`.
        """
        del processor
        counted = Counter(references(train))
        most = min(counted, key=lambda value: (-counted[value], value))
        frequencies = self.label_frequencies(counted)
        scores = None if frequencies is None else [frequencies] * len(test)
        return Outputs(values=[most] * len(test), scores=scores)

    def label_frequencies(self, counted: Mapping[Value, int]) -> "Sequence[float] | None":
        """The frequency of each class or label; None where the kind has no probabilities.

        Args:
            counted: how often each label occurs in train.
        """
        del counted
        return None


KINDS: Registry[type[Kind]] = Registry("kind", group="kinds")


def register_kind(name: str) -> Callable[[K], K]:
    """Class decorator: makes a kind of task known by `name`, which ``--kind`` takes.

    Raises:
        NameInUse: another kind has the name.
    """
    return KINDS.register(name)


def references(encoded: "Dataset") -> tuple[Value, ...]:
    """The right answers of an encoded split."""
    return tuple(tuple(v) if isinstance(v, list) else v for v in encoded[:]["truth"])


def mapped(data: "Dataset", change: Callable[[dict[str, Any]], dict[str, Any]]) -> "Dataset":
    """The data set with other columns, made of batches of rows, in memory only."""
    with _without_bars():
        return data.map(
            change,
            batched=True,
            remove_columns=data.column_names,
            keep_in_memory=True,
            load_from_cache_file=False,
        )


@contextmanager
def _without_bars() -> Iterator[None]:
    """The progress bars of `datasets` would stand before the one line about a wrong row."""
    import datasets

    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            datasets.enable_progress_bars()


def padded(rows: Sequence[Sequence[int]], value: int) -> "Tensor":
    """Rows of tokens as one tensor of shape (rows, longest), filled up on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = [torch.tensor(list(row), dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)


def on_the_right(
    rows: Sequence[EncodedExample],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    padding: Mapping[str, int],
    without: Iterable[str] = (),
) -> Batch:
    """Encoded rows as one batch, padded on the right.

    A model with absolute positions would count padding on the left.

    Args:
        rows: with the columns of the model's inputs.
        tokenizer: pads the inputs that it makes itself.
        padding: the filling of other columns of lists.
        without: columns that are not for the model, in addition to ``truth``.
    """
    unused = {"truth", *without, *padding}
    inputs = [{key: row[key] for key in row if key not in unused} for row in rows]
    batch = dict(tokenizer.pad(inputs, padding_side="right", return_tensors="pt"))
    own = {key: padded([row[key] for row in rows], value) for key, value in padding.items()}
    return {**batch, **own}


def check_fast(kind: Kind, model: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises `InvalidConfig` for a tokenizer that does not say where its tokens come from."""
    if not tokenizer.is_fast:
        raise InvalidConfig(
            f"the tokenizer of model {model!r} ({type(tokenizer).__name__}) is not a fast one: it "
            f"does not say which token is of which word, and the kind {kind.name!r} needs that. "
            "Convert it to a tokenizer.json, or choose another --model."
        )
