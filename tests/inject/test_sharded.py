"""A model sharded by `fully_shard`: saved, merged and disabled as any other, or refused."""

import subprocess
import sys

import pytest

SHARDED = """
import sys, tempfile
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
import deltakit as dk
from deltakit.testing.models import make_batch, make_model
from deltakit.testing.probes import randomise_all

dist.init_process_group("gloo", init_method="file://" + tempfile.mktemp(), rank=0, world_size=1)
model, batch = make_model("bert", "classify"), make_batch()
dk.attach(model, dk.LoRA(rank=2))
randomise_all(model)
expected = model(**batch).logits.detach()
for layer in model.bert.encoder.layer:
    fully_shard(layer)
fully_shard(model)
torch.testing.assert_close(model(**batch).logits.detach(), expected)
try:
    if sys.argv[1] == "save":
        folder = tempfile.mkdtemp()
        dk.save(model, folder)
        other = make_model("bert", "classify")
        dk.load(other, folder)
        torch.testing.assert_close(other(**batch).logits.detach(), expected)
    elif sys.argv[1] == "merge":
        dk.merge(model)
        torch.testing.assert_close(model(**batch).logits.detach(), expected)
    else:
        with dk.disabled(model):
            plain = make_model("bert", "classify")(**batch).logits
            torch.testing.assert_close(model(**batch).logits.detach(), plain.detach())
        torch.testing.assert_close(model(**batch).logits.detach(), expected)
except dk.DeltakitError as error:
    assert "\\n" not in str(error)
print("right or refused")
"""


@pytest.mark.slow
@pytest.mark.parametrize("act", ["save", "merge", "disabled"])
def test_a_sharded_model_is_right_or_refused(act: str) -> None:
    done = subprocess.run([sys.executable, "-c", SHARDED, act], capture_output=True, text=True)
    assert done.stdout.strip().endswith("right or refused"), done.stderr[-2000:]
