"""Forgetting: its measures, and the text that they are taken on."""

from __future__ import annotations

from dataclasses import dataclass

SHIPPED = "shipped"
"""The name of the text that the package holds."""

TOKEN_LOSS = "token_loss"
MASKED_LOSS = "masked_loss"
DRIFT = "drift"

MEASURES = {
    TOKEN_LOSS: "the change of the mean loss of a token, in nats",
    MASKED_LOSS: "the change of the mean loss of a masked token, in nats",
    DRIFT: "one minus the mean cosine between the last hidden states with and without the delta",
}
"""By the value of ``forgotten_kind``, what ``forgotten`` is."""


@dataclass(frozen=True, kw_only=True)
class GeneralRecord:
    """The general text of a run.

    Attributes:
        name: "shipped", or the file as the user typed it.
        fingerprint: SHA-256 of the passages, in hex.
        passages: their number.
        max_length: tokens of a passage, at most. What is longer is cut.
    """

    name: str
    fingerprint: str
    passages: int
    max_length: int

    def __str__(self) -> str:
        text = "deltakit's general text" if self.name == SHIPPED else self.name
        return f"{self.passages:,} passages of {text}"
