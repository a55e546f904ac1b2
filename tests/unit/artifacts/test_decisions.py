"""data/audit.csv: each decision is read as it was written, and each fault is one line that names the row."""

from pathlib import Path

import pytest

from refit.artifacts.decisions import Decision, decide, read_decisions
from refit.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
HEADER = b"file,decision,label,why\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.csv"


def test_the_decisions_are_read_in_their_order(file: Path) -> None:
    file.write_text(
        'file,decision,label,why\ncat/1.jpg,keep,,\n"a,b.jpg",drop,,blurred\n dog/2.jpg , relabel,cat,a cat\n'
    )
    assert read_decisions(file) == [
        Decision("cat/1.jpg", "keep", "", "", 2),
        Decision("a,b.jpg", "drop", "", "blurred", 3),
        Decision("dog/2.jpg", "relabel", "cat", "a cat", 4),
    ]


def test_columns_in_another_order_and_further_ones_are_read_too(file: Path) -> None:
    file.write_text("why,who,decision,file,label\nblurred,me,drop,a.jpg,\n")
    assert read_decisions(file) == [Decision("a.jpg", "drop", "", "blurred", 2)]


@pytest.mark.parametrize("content", [b"", HEADER, HEADER.rstrip(), b"\xef\xbb\xbf" + HEADER, b"\n"])
def test_a_file_without_decisions_is_empty(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    assert read_decisions(file) == []


def test_a_missing_file_is_empty_and_the_committed_one_has_its_header_alone(file: Path) -> None:
    assert read_decisions(file) == []
    assert (ROOT / "data/audit.csv").read_bytes().startswith(HEADER)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"file,decision,why\na.jpg,drop,\n", "line 1: there is no column label in 'file,decision,why'"),
        (b"file;decision;label;why\n", "line 1: there is no column file, decision, label, why"),
        (b"a.jpg,drop,,\n", "line 1: there is no column file, decision, label, why in 'a.jpg,drop,,'"),
        (HEADER + b"a.jpg,drop,,\nb.jpg,delete,,\n", "line 3, b.jpg: the decision 'delete' is unknown; expected keep"),
        (HEADER + b"a.jpg\n", "line 2, a.jpg: the decision '' is unknown"),
        (HEADER + b",drop,,\n", "line 2: the file is missing"),
        (HEADER + b"a.jpg,relabel,,\n", "line 2, a.jpg: relabel needs the new class in the column label"),
        (HEADER + b"a.jpg,drop,cat,\n", "line 2, a.jpg: drop takes no label, and 'cat' is one"),
        (HEADER + b"a.jpg,drop,,no, really\n", "line 2: more than 4 values; put a value with a comma into double"),
        (HEADER + b"a.jpg,drop,,\nb.jpg,keep,,\na.jpg,keep,,\n", "line 4, a.jpg is decided about in line 2 already"),
        (HEADER + b"a.jpg,drop,,\nb.jpg,drop,,caf\xe9\n", "line 3: not UTF-8; save the file as CSV"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_that_names_the_row(content: bytes, fault: str, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_decisions(file)
    (line,) = str(raised.value).replace(str(file), "data/audit.csv").splitlines()
    assert line.startswith(f"data/audit.csv, {fault}")


def test_a_decision_is_written_in_the_order_of_the_files_and_the_others_stay(file: Path) -> None:
    file.write_text('who,file,decision,label,why\nme,z.jpg,keep,,looks odd\nme,"a,b.jpg",drop,,blurred\n')
    assert decide("m.jpg", Decision("m.jpg", "relabel", "cat", "it was dog"), file) is None
    rows = ["who,file,decision,label,why", 'me,"a,b.jpg",drop,,blurred', ",m.jpg,relabel,cat,it was dog",
            "me,z.jpg,keep,,looks odd", ""]  # fmt: skip
    assert file.read_text() == "\n".join(rows)


def test_the_same_decisions_in_another_order_are_the_same_bytes(file: Path, tmp_path: Path) -> None:
    made = [Decision("b.jpg", "drop", "", ""), Decision("a.jpg", "keep", "", ""), Decision("c.jpg", "relabel", "x", "")]
    for decision in made:
        decide(decision.file, decision, file)
    other = tmp_path / "other.csv"
    for decision in reversed(made):
        decide(decision.file, decision, other)
    assert file.read_bytes() == other.read_bytes()


def test_a_decision_takes_the_place_of_an_earlier_one_and_can_be_taken_back(file: Path) -> None:
    file.write_bytes(HEADER + b"a.jpg,keep,,by hand\nb.jpg,drop,,\n")
    before = file.read_bytes()
    assert decide("a.jpg", Decision("a.jpg", "keep", "", "another reason"), file) == read_decisions(file)[0]
    assert file.read_bytes() == before, "it says so already"
    earlier = decide("a.jpg", Decision("a.jpg", "drop", "", ""), file)
    assert [one.kind for one in read_decisions(file)] == ["drop", "drop"]
    decide("a.jpg", earlier, file)
    assert file.read_bytes() == before
    decide("c.jpg", Decision("c.jpg", "drop", "", ""), file)
    decide("c.jpg", None, file)
    assert file.read_bytes() == before


def test_a_file_with_a_fault_and_a_name_that_it_cannot_hold_are_refused_and_nothing_is_written(file: Path) -> None:
    file.write_bytes(HEADER + b"a.jpg,delete,,\n")
    with pytest.raises(UserError, match="the decision 'delete' is unknown"):
        decide("b.jpg", Decision("b.jpg", "drop", "", ""), file)
    assert file.read_bytes() == HEADER + b"a.jpg,delete,,\n"
    file.write_bytes(HEADER)
    with pytest.raises(UserError, match="begins or ends with a space; rename the file"):
        decide(" b.jpg", Decision(" b.jpg", "drop", "", ""), file)
    assert file.read_bytes() == HEADER
