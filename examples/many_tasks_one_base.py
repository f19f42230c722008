"""Many tasks on one base: each row of a batch has a delta of its own.

    python examples/many_tasks_one_base.py

One copy of the base is in memory. The deltas of three customers, each of another method, are used
in one forward pass. A row without a delta has the plain base. Each row has its delta's head.
"""

import torch
from tiny import make_model, make_tokenizer

import deltakit as dk

CUSTOMERS = {
    "reviews": dk.LoRA(rank=4),
    "mails": dk.SequentialAdapter(reduction=8),
    "tickets": dk.parse_method("prefix[length=4]+parallel[reduction=8]"),
}


def main() -> None:
    """Serves one batch for three customers, and checks each row against its delta alone."""
    model, tokenizer = make_model(), make_tokenizer()
    for name, method in CUSTOMERS.items():
        dk.attach(model, method, name=name)
        for parameter in model.parameters():
            if parameter.requires_grad:  # in place of training
                torch.nn.init.normal_(parameter, std=0.1)

    queue = ["mails", None, "reviews", "tickets", "reviews"]
    texts = ["a weak plot", "the film", "a great actor", "the boring story", "an awful scene"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        dk.activate(model, dk.PerRow(queue))
        served = model(**batch).logits
        for row, name in enumerate(queue):
            dk.activate(model, name)
            alone = model(**{key: value[row : row + 1] for key, value in batch.items()}).logits
            torch.testing.assert_close(served[row : row + 1], alone, rtol=1e-5, atol=1e-5)
            print(f"{texts[row]!r:20} {name or 'the base':9} {served[row].tolist()}")


if __name__ == "__main__":
    main()
