"""The shell commands that README and docs show, and whether each is one that its program takes."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import typer

from tests.support.ray_heads import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = {"", "sh", "bash", "console"}
# Programs of others, and what their arguments reach: a cloud, the network, a registry. Only their files are looked at.
ELSEWHERE = {"aws", "gcloud", "wget", "unzip", "git", "pip", "pipx", "tensorboard", "export"}


@dataclass(frozen=True)
class Command:
    """One command line as a page shows it.

    Attributes:
        page: name of its file.
        words: as the shell splits it, without a comment.
    """

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def commands() -> list[Command]:
    """All of them, in the order of the pages."""
    return [Command(page.name, words) for page in PAGES for words in _of_page(page.read_text())]


def _of_page(text: str) -> Iterator[tuple[str, ...]]:
    for block in _blocks(text):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            for part in line.split(" && "):
                try:
                    words = shlex.split(part.replace("[the same]", ""), comments=True)
                except ValueError:  # a table, or a drawing
                    continue
                if words and Path(words[0]).name in KNOWN:
                    yield (Path(words[0]).name, *words[1:])


def _blocks(text: str) -> Iterator[str]:
    """Indented blocks, and fenced ones without a language or of a shell."""
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language in SHELL:
            yield body
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for body in re.findall(r"(?:\A|\n\n)((?:    .*\n)+)", outside):
        yield re.sub(r"^    ", "", body, flags=re.MULTILINE)


def check(command: Command) -> None:
    """Raises if a command's program would refuse it, as far as that is known without running it."""
    KNOWN[command.words[0]](list(command.words[1:]))


def _fmwsss(words: list[str]) -> None:
    from fmwsss.jobs.cli import app
    from fmwsss.jobs.config.load import load_config

    group = typer.main.get_command(app)
    context = click.Context(group, info_name="fmwsss")  # type: ignore[arg-type]
    if words[:1] == ["--version"] or "..." in words:
        return
    name, command, rest = group.resolve_command(context, list(words))  # type: ignore[attr-defined]
    own = command.make_context(name, rest, parent=context)
    run_file = own.params.get("config") or (own.params.get("names") or [None])[0]
    overrides = [word for word in own.params.get("overrides") or [] if not re.search(r"=[A-Z]$|=[A-Z]+$", word)]
    if run_file and (run_file in ("voc12", "coco14", "demo") or run_file.startswith("configs/")):
        load_config(str(ROOT / run_file) if run_file.startswith("configs/") else run_file, overrides)


def _python(words: list[str]) -> None:
    assert words[0] == "-m", words
    if words[1] in ("fmwsss.jobs", "fmwsss.jobs.pipeline"):
        _fmwsss(words[2:] if words[1] == "fmwsss.jobs" else ["run", *words[2:]])
        return
    assert importlib.util.find_spec(words[1]), f"there is no module {words[1]}"


def _ray(words: list[str]) -> None:
    from ray.dashboard.modules.job.cli import job_cli_group
    from ray.scripts.scripts import cli

    group, rest = (job_cli_group, words[1:]) if words[0] == "job" else (cli, words)
    own, after = (rest[: rest.index("--")], rest[rest.index("--") + 1 :]) if "--" in rest else (rest, [])
    command = group.get_command(click.Context(group), own[0])
    assert command is not None, f"ray has no command {own[0]}"
    command.make_context(own[0], [*own[1:], *(["--", *after] if after else [])])
    if after:
        KNOWN[after[0]](after[1:])
    _files(words)


def _files(words: list[str]) -> None:
    """Files of this repository that are named must be there."""
    for word in words:
        if re.fullmatch(r"[\w./-]+\.(ya?ml|sbatch)", word) and word not in ("mine.yaml",):
            assert (ROOT / word).exists(), f"there is no {word}"


def _docker(words: list[str]) -> None:
    known = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for flag, value in itertools.pairwise(words):
        if flag == "--build-arg":
            assert value.partition("=")[0] in known, f"the Dockerfile has no argument {value}"


def _make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets), words


KNOWN: dict[str, Callable[[list[str]], None]] = {
    "fmwsss": _fmwsss, "python": _python, "ray": _ray, "docker": _docker, "make": _make,
    "kubectl": _files, "sbatch": _files, **dict.fromkeys(ELSEWHERE, _files),
}  # fmt: skip
