"""Deltas by their names on the Hub: from its cache, and with a Hub that is played."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

import deltakit as dk
from deltakit.errors import CheckpointError
from deltakit.interop import hub
from deltakit.interop.hub import folder_of

Publish = Callable[..., Path]


@pytest.fixture
def trained(kit: SimpleNamespace) -> Any:
    """A model with a random LoRA on it."""
    model = kit.make_model("bert")
    dk.attach(model, dk.LoRA(rank=2), name="mine")
    kit.randomise_deltas(model)
    return model


@pytest.fixture
def saved(trained: Any, tmp_path: Path) -> Path:
    """Its folder."""
    dk.save(trained, tmp_path / "saved", name="mine")
    return tmp_path / "saved"


def test_a_name_in_the_cache(
    kit: SimpleNamespace, trained: Any, saved: Path, publish: Publish
) -> None:
    snapshot = publish(saved, "owner/some-delta")
    assert (snapshot / "delta.json").is_symlink()
    model = kit.make_model("bert")
    dk.load(model, "owner/some-delta")
    assert torch.equal(kit.out(model, kit.make_batch()), kit.out(trained, kit.make_batch()))
    assert folder_of("owner/some-delta") == snapshot


def test_a_revision_and_a_sub_folder(saved: Path, publish: Publish, tmp_path: Path) -> None:
    several = tmp_path / "several"
    for name in ("de", "en"):
        (several / "lang").mkdir(parents=True, exist_ok=True)
        saved_again = several / "lang" / name
        saved_again.mkdir()
        for file in saved.iterdir():
            (saved_again / file.name).write_bytes(file.read_bytes())
    first = publish(several, "o/n.v-1")
    second = publish(several, "o/n.v-1", revision="refs/pr/7", commit="d" * 40)
    assert folder_of("o/n.v-1/lang/de") == first / "lang" / "de"
    assert folder_of("o/n.v-1/lang/en@refs/pr/7") == second / "lang" / "en"
    assert folder_of(f"o/n.v-1@{'d' * 40}") == second
    with pytest.raises(
        CheckpointError, match=r"'o/n.v-1' on the Hub has no folder 'fr' .*: lang\."
    ):
        folder_of("o/n.v-1/fr")


def test_folders_of_folders_are_pointed_out(
    kit: SimpleNamespace, saved: Path, publish: Publish
) -> None:
    publish(saved.parent, "owner/several")
    with pytest.raises(CheckpointError, match="only in its folders, of which to name one: saved"):
        dk.load(kit.make_model("bert"), "owner/several")


def test_a_local_folder_goes_first(
    saved: Path, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(saved, "owner/name")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert folder_of("owner/name") == Path("owner/name")


def test_a_path_is_never_a_name(kit: SimpleNamespace, saved: Path, publish: Publish) -> None:
    publish(saved, "owner/name")
    with pytest.raises(CheckpointError, match=r"owner/name does not exist"):
        dk.load(kit.make_model("bert"), Path("owner/name"))


@pytest.mark.parametrize(
    "name", ["nothing", "./a/b", "../a/b", "/a/b", "~/a/b", "a//b", "a/b@", "a/b c", "a/b/", "@a/b"]
)
def test_what_can_be_no_name(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"is neither a folder here nor a name on the Hub"
    ) as found:
        folder_of(name)
    assert repr(name) in str(found.value) and "owner/name@" not in str(found.value)


@pytest.mark.parametrize("inner", ["../../..", "a/../../b", ".."])
def test_a_sub_folder_that_climbs_out(inner: str, saved: Path, publish: Publish) -> None:
    publish(saved, "owner/name")
    with pytest.raises(CheckpointError, match="nothing outside of it"):
        folder_of(f"owner/name/{inner}")


def test_what_the_cache_does_not_have(kit: SimpleNamespace, publish: Publish, saved: Path) -> None:
    publish(saved, "owner/name")
    model = kit.make_model("bert")
    before = kit.snapshot(model)
    for name in ("owner/other", "owner/name@v2", f"owner/name@{'e' * 40}"):
        with pytest.raises(
            CheckpointError, match="the Hub does not answer, and the local"
        ) as found:
            dk.load(model, name)
        assert "\n" not in str(found.value) and repr(name) in str(found.value)
    kit.assert_same(before, kit.snapshot(model))


@pytest.mark.parametrize(
    "network", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=["off", "dead"]
)
def test_without_a_network_nothing_is_tried_twice(
    network: dict[str, str], saved: Path, publish: Publish, tmp_path: Path
) -> None:
    publish(saved, "owner/name")
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {**network, "HF_HUB_CACHE": str(tmp_path / "hub")}
    code = (
        "import sys, time; time.sleep = lambda seconds: sys.exit(f'sleeps for {seconds} s')\n"
        "from deltakit.interop.hub import folder_of\n"
        "print(folder_of('owner/name'))\n"
        "folder_of('owner/other')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(Path(dk.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.strip().endswith("c" * 40), ended.stderr
    assert ended.returncode == 1
    assert "CheckpointError: 'owner/other' is not a folder here" in ended.stderr


# ------------------------------------------------------------------------ a Hub that is played


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[dict[str, Any]]]:
    """A Hub that answers: with the folder, or with an error. Returns what it was asked."""

    def play(answer: Any) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        def download(repo: str, **options: Any) -> str:
            asked.append({"repo": repo, **options})
            if isinstance(answer, Exception) or options.get("local_files_only"):
                raise answer if isinstance(answer, Exception) else AssertionError
            return str(answer)

        monkeypatch.setattr(hub, "model_answers", lambda repo, revision: True)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return asked

    return play


FETCHED = {
    "": ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "en/a.json",
         "en/adapter.safetensors", "adapter.safetensors", "pytorch_adapter.bin",
         "delta.safetensors", "model_head.safetensors", "pytorch_model_head.bin",
         "model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin"],
    "en": ["adapter_config.json", "en/a.json", "en/adapter.safetensors"],
}  # fmt: skip
LEFT = {
    "": ["README.md", "modeling.py", "adapter.pt", "adapter.pkl", "model.safetensors",
         "model-00001-of-00002.safetensors", "pytorch_model.bin", "sub/model.safetensors",
         "pytorch_model-00001-of-00002.bin", "optimizer.pt", "tokenizer.model"],
    "en": ["adapter_model.safetensors", "de/adapter.safetensors", "en/modeling.py"],
}  # fmt: skip


@pytest.mark.parametrize("inner", ["", "en"])
def test_only_configs_and_the_weights_of_deltas_are_fetched(
    inner: str, online: Any, tmp_path: Path
) -> None:
    from huggingface_hub.utils import filter_repo_objects

    (tmp_path / "en").mkdir()
    asked = online(tmp_path)
    assert folder_of(f"o/n/{inner}@v2" if inner else "o/n@v2") == tmp_path / inner
    ((repo, revision),) = [(each["repo"], each["revision"]) for each in asked]
    assert (repo, revision) == ("o/n", "v2")
    patterns = {key: asked[0][key] for key in ("allow_patterns", "ignore_patterns")}
    chosen = list(filter_repo_objects([*FETCHED[inner], *LEFT[inner]], **patterns))
    assert chosen == FETCHED[inner]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("GatedRepoError", "the Hub gives 'o/n' only to those who were granted access"),
        ("RepositoryNotFoundError", "the Hub has no 'o/n' that this machine may see"),
        ("RevisionNotFoundError", "the Hub has no revision 'v2' of 'o/n'"),
        ("", "the Hub did not give it (500 Server Error)"),
    ],
)
def test_a_hub_that_refuses(kind: str, reason: str, online: Any) -> None:
    from huggingface_hub import errors

    made: Any = getattr(errors, kind) if kind else None
    asked = online(made.__new__(made) if made else OSError("500 Server Error\nmore"))
    with pytest.raises(CheckpointError) as found:
        folder_of("o/n@v2")
    assert reason in str(found.value) and "\n" not in str(found.value)
    assert [each.get("local_files_only", False) for each in asked] == [False, True]
