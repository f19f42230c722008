"""CoNLL files: what is a sentence, a word and a tag in them, and what is refused."""

from pathlib import Path

import pytest

from deltakit.compare.tasks.data.conll import looks_like_conll, read_conll
from deltakit.compare.tasks.data.files import read_columns
from deltakit.errors import InvalidConfig

NEWS = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


def test_the_last_column_is_the_tag_and_the_first_the_word() -> None:
    found = read_conll(NEWS)
    assert found["tokens"] == [["EU", "rejects"], ["Peter", "Blackburn"]]
    assert found["tags"] == [["B-ORG", "O"], ["B-PER", "I-PER"]]
    assert found["column2"] == [["NNP", "VBZ"], ["NNP", "NNP"]]
    assert [*found] == ["tokens", "column2", "column3", "tags"]


@pytest.mark.parametrize(
    "text",
    [
        "# id 7\tdomain=en\na _ _ B-X\n\n# id 8\tdomain=en\n\nb _ _ O\n\n\n",
        "\n\na _ _ B-X\r\n\r\nb _ _ O",
        "a\t_\t_\tB-X\n \t\nb\t_\t_\tO\n",
        "# text = a # c d\na _ _ B-X\n\nb _ _ O",
    ],
)
def test_blank_lines_comments_and_line_ends(text: str) -> None:
    found = read_conll(text)
    assert (found["tokens"], found["tags"]) == ([["a"], ["b"]], [["B-X"], ["O"]])


def test_a_hash_and_a_line_separator_are_words() -> None:
    found = read_conll("#\tO\na\u2028b\tO\n\xa0\tO\n\n# O\n")
    assert found["tokens"] == [["#", "a\u2028b", "\xa0"], ["#"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", r"line 2 has 1 cells where the first word has 2"),
        ("a O\nb c O\n", r"line 2 has 3 cells where the first word has 2"),
        ("just\nwords\n", r"line 1 \('just'\) has no tag\. A line holds a word and"),
        ("a\tO\nb\t \n", r"line 2 \('b'\) has no tag"),
    ],
)
def test_a_line_without_a_word_and_a_tag_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    for ending in ("conll", "txt"):
        file = tmp_path / f"train.{ending}"
        file.write_text(text)
        with pytest.raises(InvalidConfig, match=message) as caught:
            read_columns(file)
        assert "\n" not in str(caught.value)


def test_a_table_with_tabs_stays_a_table(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    for text in ("text\tlabel\n\ngood\tO\n", "text\tO\nbad\tB-X\n", 'text\tlabel\n"a\n\nO"\tO\n'):
        assert not looks_like_conll(text)
        file.write_text(text)
        assert "tokens" not in read_columns(file)
    file.write_text("a\tO\nb\tB-X\n\nc\tO\n")
    assert read_columns(file)["tokens"] == [["a", "b"], ["c"]]
