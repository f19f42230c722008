"""The processor of a model, which turns texts or pictures into its inputs."""

from typing import Any, TypeAlias

Processor: TypeAlias = Any
"""A tokenizer (`PreTrainedTokenizerBase`) or an image processor (`BaseImageProcessor`).

`deltakit.models.heads.Head.reads` decides which. A kind of task annotates the one that it takes.
"""


def pad_token_of(processor: Processor) -> int | None:
    """The id of the token that fills up texts; None where the processor makes no tokens."""
    from transformers import PreTrainedTokenizerBase

    if not isinstance(processor, PreTrainedTokenizerBase):
        return None
    found = processor.pad_token_id
    return None if found is None else int(found)
