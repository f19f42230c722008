"""Whether the Hub answers, asked once and briefly: its own clients retry for half a minute."""

from collections.abc import Callable

HUB_TIMEOUT = 5.0
"""Seconds that the Hub has to answer, before only the local cache is looked into."""


def hub_answers(ask: Callable[[], object]) -> bool:
    """True if `ask` gets an answer; a "not found" is one."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        ask()
    except (HfHubHTTPError, HFValidationError):
        return True
    except Exception:
        # No network, a proxy's refusal, offline mode: the HTTP client has a class for each.
        return False
    return True


def model_answers(repo: str, revision: str | None = None) -> bool:
    """Whether the Hub answers when it is asked for a repository of a model, or of deltas."""
    from huggingface_hub import HfApi

    return hub_answers(lambda: HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT))
