"""Tables of tokens with more rows than the checkpoint that a model was loaded from."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def grown_tables(model: "PreTrainedModel") -> tuple[nn.Parameter, ...]:
    """The embeddings, and the projection to the vocabulary, that were given further rows.

    It is judged by the config of the checkpoint, where that is on this machine.
    """
    known = _vocabulary(model)
    if known is None:
        return ()
    weights = (table.get_parameter("weight") for table in _tables(model))
    return tuple(weight for weight in weights if weight.shape[0] > known)


def _tables(model: "PreTrainedModel") -> list[nn.Module]:
    try:
        found = (model.get_input_embeddings(), model.get_output_embeddings())
    except (NotImplementedError, AttributeError):  # of a model that reads no tokens
        return []
    return [each for each in found if isinstance(each, nn.Embedding | nn.Linear)]


def _vocabulary(model: "PreTrainedModel") -> int | None:
    """The number of tokens that the checkpoint has rows for; None where that is not known."""
    name = model.name_or_path
    if not name:
        return None
    try:
        saved = type(model.config).from_pretrained(name, local_files_only=True)
        words = getattr(saved.get_text_config(), "vocab_size", None)
    except (OSError, ValueError):
        return None
    return words if isinstance(words, int) else None
