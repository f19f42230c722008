"""Whether the Hub answers, asked once and briefly: its own clients retry for half a minute."""

from collections.abc import Callable
from enum import Enum

HUB_TIMEOUT = 5.0
"""Seconds that the Hub has to answer, before only the local cache is looked into."""


class Answer(Enum):
    """The Hub's answer to a question for a repository."""

    NONE = "there is no network, or the Hub is silent"
    MISSING = "there is no such repository, or it is private"
    THERE = "anything else"


def answer_to(ask: Callable[[], object]) -> Answer:
    """The Hub's answer to a call of its client."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        ask()
    except GatedRepoError:
        return Answer.THERE
    except RepositoryNotFoundError:
        return Answer.MISSING
    except (HfHubHTTPError, HFValidationError):
        return Answer.THERE
    except Exception:
        # No network, a proxy's refusal, offline mode: the HTTP client has a class for each.
        return Answer.NONE
    return Answer.THERE


def hub_answers(ask: Callable[[], object]) -> bool:
    """True if `ask` gets an answer; a "not found" is one."""
    return answer_to(ask) is not Answer.NONE


def answer_for(repo: str, revision: str | None = None) -> Answer:
    """The Hub's answer to a question for a repository of a model, or of deltas."""
    from huggingface_hub import HfApi

    return answer_to(lambda: HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT))


def model_answers(repo: str, revision: str | None = None) -> bool:
    """Whether the Hub answers when it is asked for a repository of a model, or of deltas."""
    return answer_for(repo, revision) is not Answer.NONE
