"""Tables: what a CSV file may look like, and what is said of one that is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rnn_xp.table import Table, TableError, as_number, parse_table, read_table


def parse(text: str, header: bool | None = True) -> Table:
    return parse_table(text, "t.csv", header=header)


def test_a_plain_table() -> None:
    table = parse("a,b\n1,x\n-2.5e1,y\n")
    assert len(table) == 2
    assert list(table.columns) == ["a", "b"]
    assert table.lines == (2, 3)
    assert table.text("b") == ("x", "y")
    assert table.numbers("a").tolist() == [1.0, -25.0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_and_line_ends(delimiter: str) -> None:
    for end in ("\n", "\r\n"):
        table = parse(end.join(delimiter.join(row) for row in ("ab", "12", "34")))
        assert table.numbers("b").tolist() == [2.0, 4.0]


def test_the_delimiter_is_that_of_the_first_line_with_something() -> None:
    assert parse_table("\n\na;b\n1;2\n", "t.csv").text("b") == ("2",)


def test_a_semicolon_table_may_have_a_comma_in_a_field() -> None:
    assert parse("a;b;c\n1,5;2;3\n").text("a") == ("1,5",)


def test_quotes_spaces_and_blank_lines() -> None:
    table = parse('name , n\n\n"x, ""y""\nz" , 1 \n\nlast,2\n')
    assert table.text("name") == ('x, "y"\nz', "last")
    assert table.numbers("n").tolist() == [1.0, 2.0]
    assert table.lines == (4, 6)  # the lines that the rows end on


def test_what_is_missing() -> None:
    table = parse("a,b\n,1\nNA,1\nn/a,1\nNaN,1\nnull,1\nNone,1\n?,1\n7,1\n")
    values = table.numbers("a")
    assert all(math.isnan(value) for value in values[:7])
    assert values[7] == 7.0


@pytest.mark.parametrize(
    ("text", "number"),
    [(" 1 ", 1.0), ("-1e-3", -0.001), ("1e999", None), ("inf", None), ("1_0", None), ("x", None)],
)
def test_as_number(text: str, number: float | None) -> None:
    assert as_number(text) == number


def test_without_a_header() -> None:
    table = parse("1,2\n3,4\n", header=False)
    assert list(table.columns) == ["0", "1"]
    assert table.lines == (1, 2)
    assert table.numbers("1").tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("first", "is_header"), [("a,b", True), ("1,b", True), ("1,2", False), ("1,", False)]
)
def test_a_header_is_a_row_with_a_word(first: str, is_header: bool) -> None:
    table = parse(f"{first}\n3,4\n", header=None)
    assert len(table) == (1 if is_header else 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv is empty"),
        ("\n\n", "t.csv is empty"),
        ("a,b\n", "t.csv has a header, but no row of data"),
        ("a,b\n1,2\n3\n", "t.csv, line 3 has 1 fields, but the first row has 2"),
        ("a,b\n1,2,3\n", "t.csv, line 2 has 3 fields, but the first row has 2"),
        ("a,b,a\n1,2,3\n", "t.csv has 2 columns called 'a'"),
        ("a,b\n" + "x" * 200_000 + ",1\n", "t.csv, line 2 is not CSV: field larger than"),
    ],
)
def test_what_is_wrong_with_a_table(text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        parse(text)


def test_what_is_wrong_with_a_column() -> None:
    table = parse('a,b\n1,2\n\n"x\ny",inf\n')
    with pytest.raises(TableError, match=r"t.csv has no column 'c': its columns are a, b"):
        table.text("c")
    with pytest.raises(TableError, match=r"t.csv, line 5: the column 'a' has 'x\\ny', expected a"):
        table.numbers("a")
    with pytest.raises(TableError, match=r"line 5: the column 'b' has 'inf'"):
        table.numbers("b")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n")  # with a byte order mark, as Excel writes it
    table = read_table(path)
    assert table.source == str(path)
    assert table.numbers("a").tolist() == [1.0]
    path.write_bytes(b"a,b\n1,\xff\n")
    with pytest.raises(TableError, match=r"t.csv is not UTF-8 text: byte 6 is no part of it"):
        read_table(path)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "missing.csv")
    with pytest.raises(OSError, match="directory"):
        read_table(tmp_path)
