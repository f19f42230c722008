"""The folder of a choice: every step of it is stored, whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltakit._files import sweep, write_text
from deltakit.choose.decide.arms import Reading
from deltakit.compare.records.result import Predictions, Scores
from deltakit.errors import InvalidConfig

REQUEST = "request.json"


@dataclass(frozen=True)
class Journal:
    """A choice's folder."""

    path: Path

    def open(self, request_id: str, request: Mapping[str, Any]) -> None:
        """Begins the folder, or goes on in it.

        Raises:
            InvalidConfig: it is another choice's, or holds something else.
        """
        file = self.path / REQUEST
        if not file.is_file():
            self._check_empty()
            sweep(self.path)
            self.write(REQUEST, {"id": request_id, **request})
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["id"] != request_id:
            raise InvalidConfig(
                f"--out {self.path} belongs to another choice: its task, model, field, constraints "
                "or budget differ, or a version with other rungs began it. Choose another folder, "
                "or repeat the command that made it."
            )

    def _check_empty(self) -> None:
        if self.path.exists() and (
            not self.path.is_dir()
            or any(not each.name.startswith(f".{REQUEST}") for each in self.path.iterdir())
        ):
            raise InvalidConfig(
                f"--out {self.path} exists and is not the folder of a choice (it has no "
                f"{REQUEST}). Choose another one."
            )

    def write(self, name: str, content: Any) -> None:
        """Stores a record as JSON."""
        write_text(self.path / name, json.dumps(content, indent=1) + "\n")

    def read(self, name: str) -> Any:
        """A stored record, or None."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def arm_folder(self, arm: str) -> Path:
        """The folder of an arm's state."""
        return self.path / "arms" / _file_name(arm)

    def reading(self, arm: str, rung: int) -> Reading | None:
        """The reading of an arm at a rung, or None."""
        content = self.read(f"arms/{_file_name(arm)}/rung-{rung}.json")
        if content is None:
            return None
        made = content.pop("predictions")
        return Reading(**content, predictions=None if made is None else predictions_from(made))

    def keep(self, arm: str, rung: int, reading: Reading) -> None:
        """Stores a reading, after the arm's state."""
        made = reading.predictions
        content = {
            "steps": reading.steps,
            "seconds": reading.seconds,
            "reason": reading.reason,
            "predictions": None if made is None else predictions_to(made),
        }
        write_text(
            self.path / f"arms/{_file_name(arm)}/rung-{rung}.json", json.dumps(content) + "\n"
        )


def _file_name(arm: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=@-]+", "_", arm)


def predictions_to(made: Predictions) -> dict[str, Any]:
    """Predictions as JSON holds them."""
    return {
        "labels": made.labels,
        "predicted": made.predicted,
        "scores": None if made.scores is None else made.scores.array.tolist(),
        "classes": made.classes,
    }


def predictions_from(content: Mapping[str, Any]) -> Predictions:
    """The inverse of `predictions_to`."""
    scores = content["scores"]
    return Predictions(
        labels=_tuples(content["labels"]),
        predicted=_tuples(content["predicted"]),
        scores=None if scores is None else Scores(scores),
        classes=tuple(content["classes"]),
    )


def _tuples(values: Any) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)
