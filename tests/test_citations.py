"""Every citation of the method resolves: sections `M1` to `M12`, equations of the paper, documents of the repository.

Only files are read, so that it runs without torch and does not care where a module lives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METHOD = ROOT / "docs/method.md"
FOLDERS = ("fmwsss_core", "cluster", "jobs", "configs", "docs", "tests", "benchmarks")
SUFFIXES = {".py", ".pyi", ".yaml", ".yml", ".toml", ".md", ".html"}
PAPER = "2312.03585"

# `M2`, `M2.1`, and an item of a section: `M2.1 d` before a bracket, a full stop, a comma, a colon or a semicolon.
CITATION = re.compile(r"\bM(\d+(?:\.\d+)?)\b(?: ([a-z])(?=[).,:;]))?")
# `eq. 8`, `eq. 8-10`, `eqs. 8 and 9`; what follows may name another paper.
EQUATION = re.compile(r"\beqs?\. ?\(?(\d+)\)?(?: ?(-|–|to|and) ?\(?(\d+)\)?)?(?: of arXiv (\d{4}\.\d{5}))?", re.I)
URL = re.compile(r"\bhttps?://\S+|\b[\w-]+\.(?:com|org|io|net)/\S+")
DOCUMENT = re.compile(r"(?<![\w./-])((?:\.{0,2}/)?(?:[\w.-]+/)*[\w-]+\.md)\b")


def files() -> list[Path]:
    """The committed kinds of text: of the folders at any depth, and of the root itself."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")] + list(ROOT.iterdir())
    return sorted(path for path in found if path.is_file() and path.suffix in SUFFIXES)


def sections(text: str) -> dict[str, str]:
    """The text below each numbered heading, by number, with what is below its own subsections."""
    prose = _without_code(text)
    headings = list(re.finditer(r"^#{2,3} (\d+(?:\.\d+)?)\.? .+$", prose, re.M))
    ends = [heading.start() for heading in headings[1:]] + [len(prose)]
    return {heading[1]: prose[heading.start() : end] for heading, end in zip(headings, ends, strict=True)}


def _without_code(text: str) -> str:
    """Without fenced blocks, whose lines may begin with `#`."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def unresolved_citations(text: str, known: dict[str, str]) -> set[str]:
    """Citations of sections, or of items in them, that `known` does not have."""
    missing = set()
    for found in CITATION.finditer(text):
        number, item = found[1], found[2]
        if number not in known or (item and f"**({item})**" not in known[number]):
            missing.add(found[0])
    return missing


def equations(text: str) -> set[int]:
    """Numbers of the equations that are cited; a range stands for all in it. Those of another paper are left out."""
    numbers: set[int] = set()
    for found in EQUATION.finditer(text):
        first, link, last, paper = found.groups()
        if paper not in (None, PAPER):
            continue
        until = int(last) if last else int(first)
        numbers |= set(range(int(first), until + 1)) if link in ("-", "–", "to") else {int(first), until}
    return numbers


def missing_documents(text: str, path: Path) -> set[str]:
    """Markdown files that a file names and that are not in the repository.

    A name is read from the root, from the file's own folder, or as one of docs/. The method must be named with its
    folder, but for a link of another page of docs/.
    """
    missing = set()
    for name in DOCUMENT.findall(URL.sub("", text)):
        places = [ROOT / name, path.parent / name, ROOT / "docs" / name]
        inside = any(place.is_file() and place.resolve().is_relative_to(ROOT) for place in places)
        is_bare = Path(name).name == METHOD.name and not name.endswith("docs/" + METHOD.name)
        if not inside or (is_bare and path.parent != METHOD.parent):
            missing.add(name)
    return missing


def every_file() -> Iterator[tuple[str, str, Path]]:
    for path in files():
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"), path


def test_sections_are_numbered_and_have_anchors() -> None:
    text = METHOD.read_text(encoding="utf-8")
    known = sections(text)
    assert {str(number) for number in range(1, 13)} <= set(known)
    for number in known:
        assert re.search(rf'^<a id="m{re.escape(number)}"></a>\n#{{2,3}} {re.escape(number)}\.? ', text, re.M), number
    targets = set(re.findall(r'<a id="([^"]+)"></a>', text))
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= targets


def test_citations_of_sections_resolve() -> None:
    known = sections(METHOD.read_text(encoding="utf-8"))
    wrong = {name: missing for name, text, _ in every_file() if (missing := unresolved_citations(text, known))}
    assert not wrong


def test_cited_equations_are_in_the_method() -> None:
    known = equations(METHOD.read_text(encoding="utf-8"))
    wrong = {name: missing for name, text, _ in every_file() if (missing := equations(text) - known)}
    assert not wrong


def test_no_document_outside_of_the_repository_is_cited() -> None:
    wrong = {name: missing for name, text, path in every_file() if (missing := missing_documents(text, path))}
    assert not wrong


def test_something_is_cited() -> None:
    texts = {name: text for name, text, _ in every_file()}
    citing = [name for name, text in texts.items() if name.endswith(".py") and CITATION.search(text)]
    assert len(citing) > 20
    assert set.union(*(equations(texts[name]) for name in citing)) >= {8, 9, 10}


def test_the_method_is_wrapped() -> None:
    lines = METHOD.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


# Citations are put together here, so that the tests above do not find them.


@pytest.mark.parametrize("citation", [f"M{13}", f"M{2}.9", f"M{2}.1 z."])
def test_a_wrong_citation_is_found(citation: str) -> None:
    known = sections(METHOD.read_text(encoding="utf-8"))
    assert unresolved_citations(f"the map (method {citation})", known)
    assert not unresolved_citations("the map (M2.1 d), its affinity (M2.2), a loss (M4); M2F and 16M are none", known)


def test_an_unknown_equation_is_found() -> None:
    number = 90
    known = equations(METHOD.read_text(encoding="utf-8"))
    assert {4, *range(8, 16)} <= known
    assert equations(f"by eq. {number - 1}-{number + 1}") == {number - 1, number, number + 1}
    assert equations(f"by eqs. {number} and {number + 5}") == {number, number + 5}
    assert equations(f"eq. {number} of arXiv 2404.08181") == set()
    assert equations(f"eq. {number} of arXiv {PAPER}") - known == {number}


@pytest.mark.parametrize(
    ("name", "stands_in", "is_missing"),
    [
        ("docs/method{}", "fmwsss_core/a.py", False),
        ("method{}#m2", "docs/prompts.md", False),
        ("method{}", "fmwsss_core/a.py", True),
        ("method{}", "README.md", True),
        ("../shared/design{}", "fmwsss_core/a.py", True),
        ("nowhere{}", "docs/prompts.md", True),
        ("https://example.org/nowhere{}", "README.md", False),
        ("README{}", "pyproject.toml", False),
    ],
)
def test_a_document_that_is_not_there_is_found(name: str, stands_in: str, is_missing: bool) -> None:
    text = f"see [there]({name.format('.md')}) for more"
    assert bool(missing_documents(text, ROOT / stands_in)) == is_missing
