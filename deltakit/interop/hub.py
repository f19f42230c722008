"""Folders of deltas that are on the Hub: fetched once, then found in the local cache."""

import glob
import re
from pathlib import Path
from typing import Any

from deltakit._network import model_answers
from deltakit.errors import CheckpointError, first_line
from deltakit.interop.files import inside

WEIGHTS = ("*.safetensors", "*.bin")
"""What is fetched beside configs: no code, and no pickle but of tensors."""
BASE = ("model.safetensors", "model-0*.safetensors", "pytorch_model.bin", "pytorch_model-0*.bin")
"""What is not fetched: the weights of a whole model beside its deltas."""

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)((?:/[^/@]+)*)(?:@(.+))?")


def folder_of(source: str | Path) -> Path:
    """The folder of that name or, where there is none, the local copy of what the Hub calls so.

    Args:
        source: a folder; or "owner/name", "owner/name/sub-folder", either with "@revision".

    Raises:
        CheckpointError: it can name neither, or neither the Hub nor the local cache has it.
    """
    path = Path(source)
    if isinstance(source, Path) or path.exists():
        return path
    name = _NAME.fullmatch(source)
    if name is None:
        raise CheckpointError(
            f"{source!r} is neither a folder here nor a name on the Hub. Give a folder that "
            "exists, or owner/name, owner/name/sub-folder, either with @revision."
        )
    repo, inner, revision = name[1], name[2].strip("/"), name[3]
    snapshot = _snapshot(source, repo, revision, inner)
    folder = inside(snapshot, inner) if inner else snapshot
    if not folder.is_dir():
        have = ", ".join(sorted(each.name for each in snapshot.iterdir() if each.is_dir()))
        raise CheckpointError(
            f"{repo!r} on the Hub has no folder {inner!r} of deltas. It has: {have or 'none'}."
        )
    return folder


def _snapshot(source: str, repo: str, revision: str | None, inner: str) -> Path:
    """The local copy of a repository; only the cache is looked into if the Hub does not answer."""
    from huggingface_hub import snapshot_download

    start = f"{glob.escape(inner)}/" if inner else ""
    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": ["*.json", *(start + name for name in WEIGHTS)],
        "ignore_patterns": [*BASE, *(f"*/{name}" for name in BASE)],
    }
    reason = "the Hub does not answer"
    if model_answers(repo, revision):
        try:
            return Path(snapshot_download(repo, **options))
        except Exception as error:
            # The Hub's clients raise a class for each trouble; to users it is one thing.
            reason = _reason(error, repo, revision)
    try:
        return Path(snapshot_download(repo, **options, local_files_only=True))
    except (OSError, ValueError):
        raise CheckpointError(
            f"{source!r} is not a folder here, {reason}, and the local cache does not have all of "
            "it. Check the name and the network (HF_HUB_OFFLINE is respected), or give a local "
            "folder."
        ) from None


def _reason(error: Exception, repo: str, revision: str | None) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case GatedRepoError():
            return f"the Hub gives {repo!r} only to those who were granted access"
        case RepositoryNotFoundError():
            return f"the Hub has no {repo!r} that this machine may see"
        case RevisionNotFoundError():
            return f"the Hub has no revision {revision!r} of {repo!r}"
        case _:
            return f"the Hub did not give it ({first_line(error).rstrip('.')})"
