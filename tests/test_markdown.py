"""Prose in Markdown is wrapped: a change of a sentence is a change of a line or two."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
WIDTH = 100
FOLDERS = (".", ".github", "docs", "fmwsss_core/toy")
PAGES = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))


def long_lines(text: str) -> list[str]:
    """Lines of prose that are too long: no tables, headings or blocks of code, which can't be broken."""
    parser = MarkdownIt("commonmark").enable("table")
    lines, found = text.split("\n"), []
    for token in parser.parse(text):
        if token.type == "paragraph_open":
            assert token.map
            found += [line for line in lines[slice(*token.map)] if len(line) > WIDTH and can_be_broken(line)]
    return found


def can_be_broken(line: str) -> bool:
    """Whether there is a space outside of code: a command in a line, or a link, stays whole."""
    words = re.sub(r"`[^`]*`", "code", line.strip()).split()
    return len(words) > 2  # a mark of a list, and one word


@pytest.mark.parametrize("page", PAGES)
def test_prose_is_wrapped(page: str) -> None:
    found = long_lines((ROOT / page).read_text(encoding="utf-8"))
    assert not found, f"longer than {WIDTH} columns, {found}"


def test_long_lines_are_found() -> None:
    word = "word " * 25
    assert long_lines(f"{word}\n\n- {word}\n") == [word, f"- {word}"]
    assert long_lines(f"    {word}\n\n```\n{word}\n```\n\n| {word} |\n|---|\n| {word} |\n") == []
    assert long_lines(f"- `{word}`\n") == []
