"""Every lesson has the form of the course, and the map in lesson 00 leads to it."""

import json
import re
import tempfile
from pathlib import Path

import pytest
from course import real_data

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
PATHS = {path.name[:2]: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
LONG = ("11", "12")  # lessons of 45 cells; the others have 35
ENDING = ["What we found", "To remember", "Read next"]


def cells(number: str) -> list[dict]:
    return json.loads(PATHS[number].read_text(encoding="utf-8"))["cells"]


def words(number: str) -> str:
    """The Markdown of a lesson."""
    return "\n\n".join("".join(c["source"]) for c in cells(number) if c["cell_type"] == "markdown")


def first(number: str) -> str:
    return "".join(cells(number)[0]["source"])


@pytest.mark.parametrize("number", PATHS)
def test_form(number):
    title, question, *_ = first(number).split("\n\n")
    assert re.fullmatch(rf"# {number} · \S.*", title.strip())
    assert re.fullmatch(r"\*\*[^*]+\?\*\*", " ".join(question.split())), "a question in one bold sentence"
    assert re.search("afterwards you can", first(number), re.I)
    assert number in LONG or "](https://" in words(number), "who wrote it, with a link"
    assert len(cells(number)) <= (45 if number in LONG else 35)
    assert "glossary.md#" in words(number)
    assert re.findall(r"^## (.*)$", words(number), re.M)[-3:] == ENDING
    assert re.search(r"open experiment", words(number), re.I)


@pytest.mark.parametrize("number", PATHS)
def test_no_machine_check_stands_where_a_reader_wants_a_number(number):
    code = "\n".join("".join(cell["source"]) for cell in cells(number) if cell["cell_type"] == "code")
    assert not re.search(r"\bwithin\(|^\s*assert ", code, re.M)


@pytest.mark.parametrize("number", PATHS)
def test_a_cell_that_makes_a_folder_can_be_run_again(number):
    """A reader changes a cell and runs it once more: ``mkdir()`` would say "File exists"."""
    code = "\n".join("".join(cell["source"]) for cell in cells(number) if cell["cell_type"] == "code")
    assert not re.search(r"\.mkdir\((?!.*exist_ok)", code)


@pytest.mark.parametrize("number", PATHS)
def test_the_map_tells_title_question_and_minutes(number):
    title = re.match(r"# (.*)", first(number))[1].strip()
    question = " ".join(re.search(r"\*\*([^*]+\?)\*\*", first(number))[1].split())
    minutes = re.search(r"\*\*(\d+) minutes\*\*", first(number))[1]
    name = f"**{title}**" if number == "00" else f"[{title}]({PATHS[number].name})"
    assert f"| {name} | {question} | {minutes} |" in words("00")


@pytest.mark.parametrize("number", list(PATHS)[:-1])
def test_a_lesson_leads_to_the_next(number):
    assert f"]({PATHS[f'{int(number) + 1:02d}'].name}" in words(number)


def test_only_temporary_folders_are_emptied(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name in ("temporary/old", "mine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    assert not [*real_data.fresh(tmp_path / "temporary" / "old").iterdir()]
    with pytest.raises(ValueError, match="is emptied only below"):
        real_data.fresh(tmp_path / "mine")
    assert (tmp_path / "mine" / "file").exists()
