"""The names of a task head's classes, in the order of its rows."""

from collections.abc import Mapping

Labels = tuple[str, ...]
"""A name for each row; empty where the rows have no names."""


def labels_of(label2id: object) -> Labels:
    """The names in the order of the rows.

    Args:
        label2id: a config's: the row of each name.

    Returns:
        Nothing where each row has not exactly one name, or the names are transformers' defaults
        (``LABEL_0``, ...), which say nothing.
    """
    if not isinstance(label2id, Mapping) or not all(type(row) is int for row in label2id.values()):
        return ()
    names = {row: str(name) for name, row in label2id.items()}
    if sorted(label2id.values()) != list(range(len(label2id))):
        return ()
    labels = tuple(names[row] for row in sorted(names))
    return () if labels == default_labels(len(labels)) else labels


def default_labels(rows: int) -> Labels:
    """Transformers' names for classes that have none."""
    return tuple(f"LABEL_{row}" for row in range(rows))


def row_of_each(labels: Labels) -> dict[str, int]:
    """The inverse of `labels_of`: a config's ``label2id``."""
    return {name: row for row, name in enumerate(labels)}
