"""A model by its name: here, in the local cache, on the Hub, or nowhere."""

import pytest

from deltakit._network import Answer
from deltakit.errors import UnknownName
from deltakit.models import find as module
from deltakit.models.find import find


@pytest.mark.parametrize(
    ("answer", "local_only"),
    [(Answer.THERE, False), (Answer.MISSING, True), (Answer.NONE, True)],
)
def test_a_cached_model_is_had_whatever_the_hub_answers(
    answer: Answer, local_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_is_cached", lambda location: True)
    monkeypatch.setattr(module, "answer_for", lambda location: answer)
    assert find("owner/name").local_only is local_only


@pytest.mark.parametrize(
    ("answer", "why"),
    [(Answer.MISSING, "no public model"), (Answer.NONE, "the Hub does not answer")],
)
def test_a_model_that_is_nowhere(answer: Answer, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_cached", lambda location: False)
    monkeypatch.setattr(module, "answer_for", lambda location: answer)
    with pytest.raises(UnknownName, match=f"'owner/name' is not a folder here, .*{why}"):
        find("owner/name")


def test_a_model_that_is_not_cached_and_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_cached", lambda location: False)
    monkeypatch.setattr(module, "answer_for", lambda location: Answer.THERE)
    assert not find("owner/name").local_only
