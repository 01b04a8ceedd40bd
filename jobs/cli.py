"""The command `fmwsss`."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from fmwsss.cluster.storage.redaction import plain
from fmwsss.cluster.storage.storage_errors import demand_times
from fmwsss.core.errors import FmwsssError, InputError
from fmwsss.core.memory_errors import told_out_of_memory
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run import RunConfig

STAGES_PANEL = "Stages"
A_BUG = (
    "this is a bug of fmwsss, not a mistake of yours; please report it with the lines above (CONTRIBUTING.md says how)"
)


class Commands(TyperGroup):
    """Commands about runs, which stand below, and one command for each declared stage, by its name.

    Stages are asked for only where no other command has the name: their declarations need Ray.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, for `--help`."""
        from fmwsss.jobs.steps import DECLARED

        return [*super().list_commands(ctx), *(own.name for own in DECLARED)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name; of a stage also by what it was called before.

        Args:
            ctx: of Typer.
            cmd_name: as it was typed.

        Returns:
            None if there is none.
        """
        command = super().get_command(ctx, cmd_name)
        return command or _stage_command(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command that the words begin with: `seeds coarse` is `seeds/coarse`, `learn coarse` once was a name.

        Args:
            ctx: of Typer.
            args: all words that were typed.

        Returns:
            Name, command, and the words that are left.
        """
        first: Any = super().get_command(ctx, args[0])
        inner = first.list_commands(ctx) if hasattr(first, "list_commands") else []
        is_stage = first is None or (inner and args[1:2] and args[1] not in inner)
        if is_stage and len(args) > 1 and not args[1].startswith("-"):
            for name in ("/".join(args[:2]), " ".join(args[:2])):
                if command := _stage_command(name):
                    return name, command, args[2:]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Image-level labels to segmentation seeds with CLIP and SAM, on one machine or a Ray cluster.",
)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        print(f"fmwsss {version('fmwsss')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="tell the version and exit")
    ] = False,
) -> None:
    """Image-level labels to segmentation seeds with CLIP and SAM, on one machine or a Ray cluster."""


ConfigPath = Annotated[
    str, typer.Argument(metavar="RUN_FILE", help="a run file, a preset such as demo, or a run folder to go on with")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings laid over the run file")
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="STAGE", help="delete the outputs of this stage and of all that depend on it first"),
]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="STAGE", help="make this stage alone; may be repeated")
]
RunUrl = Annotated[str, typer.Argument(metavar="RUN", help="a run folder or its URL")]
RunOrFile = Annotated[str, typer.Argument(metavar="RUN", help="a run folder (path or URL), or its run file")]


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    restart_from: From = None,
    only: Only = None,
    relearn: Annotated[
        bool, typer.Option("--relearn", help="learn prompts anew where images or labels changed, however few")
    ] = False,
    as_it_was: Annotated[
        bool, typer.Option("--as-it-was", help="do not look whether the dataset has changed since the run took it")
    ] = False,
    only_images: Annotated[
        str | None,
        typer.Option("--only-images", metavar="LIST", help="take only these: a file with an id on each line"),
    ] = None,
) -> None:
    """Make every stage that is not complete yet, print the table, write the report."""
    if only_images is not None:
        overrides = [*(overrides or []), f"dataset.only_images={only_images}"]
    _execute(config, overrides, only or None, restart_from, relearn=relearn, as_it_was=as_it_was)


@app.command()
def failures(
    run: RunUrl,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="only this stage, such as seeds/fine")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="try the images again, and go on with the run")] = False,
    config: Annotated[str | None, typer.Option(help="with --retry: a run file, instead of the run's manifest")] = None,
) -> None:
    """Show the images that failed, and why; with --retry do them, and what depends on them, again."""
    with _told_in_lines():
        from fmwsss.cluster.storage.folder import Folder
        from fmwsss.cluster.storage.ledger import Run
        from fmwsss.jobs.commands.failures import show
        from fmwsss.jobs.config.load import config_of

        ledger = Run(Folder(run))
        show(ledger, stage)
        if retry:
            from fmwsss.jobs import steps

            where = [f"run={run}", *(overrides or [])]
            settings = load_config(config, where) if config else config_of(ledger, overrides)
            steps.run(settings, retry=stage or True)


@app.command()
def predict(
    run: RunOrFile,
    images: Annotated[str, typer.Option(help="folder of images, a path or an s3:// URL")],
    overrides: Overrides = None,
    truth: Annotated[str | None, typer.Option(help="folder of label PNGs named by id, to judge by")] = None,
    name: Annotated[str, typer.Option(help="of the folder in RUN/predictions/")] = "new",
    voc: Annotated[bool, typer.Option("--voc", help="also pack them for the server of PASCAL VOC")] = False,
) -> None:
    """Predict images with the run's trained segmenter: PNG and Parquet, refined by superpixels."""
    with _told_in_lines():
        settings = _config_of(run, overrides, unread=("dataset", "prompts"))
        from fmwsss.jobs import steps

        print(f"predictions: {steps.predict_new(settings, images, truth, name, voc)}")


@app.command()
def export(
    run: RunOrFile,
    size: Annotated[
        str, typer.Option(metavar="HEIGHTxWIDTH", help="of its images, in pixels; short side: segmenter.short_side_px")
    ],
    overrides: Overrides = None,
) -> None:
    """Write the run's segmenter as one file that torch alone runs."""
    with _told_in_lines():
        height, _, width = size.partition("x")
        if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
            raise InputError(f"--size is HEIGHTxWIDTH in pixels, such as 512x672, not {size!r}")
        settings = _config_of(run, overrides, unread=("dataset", "prompts", "proposals"))
        from fmwsss.cluster.storage.driver_lock import hold
        from fmwsss.cluster.storage.folder import Folder
        from fmwsss.cluster.storage.ledger import Run
        from fmwsss.jobs.exporters.torch_program import export

        ledger = Run(Folder(settings.run))
        with hold(ledger.folder, lambda: None) as claim:
            with told_out_of_memory("give a smaller --size"):
                place = export(settings, Run(ledger.folder.guarded(claim)), int(height), int(width))
            print(f"exported: {place}")
        trained_px = settings.segmenter.short_side_px if settings.segmenter else 0
        if min(int(height), int(width)) != trained_px:
            print(f"it was trained with a short side of {trained_px} px: accuracy may drop at other sizes")


@app.command()
def convert(
    run: RunUrl,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="coco, panoptic, yolo, mmseg, voc, labelstudio, cvat, cityscapes, fiftyone or hf"
        ),
    ],
    output: Annotated[str | None, typer.Option(help="an empty folder or URL; left out, RUN/exports/FORMAT")] = None,
    of: Annotated[str | None, typer.Option("--of", help="seeds/fine, seeds/coarse or predictions/NAME")] = None,
    polygons: Annotated[bool, typer.Option("--polygons", help="of coco: outlines instead of run lengths")] = False,
    only_images: Annotated[
        str | None, typer.Option("--only-images", metavar="LIST", help="only these: a file with an id on each line")
    ] = None,
) -> None:
    """Write images and label maps of a run in the format of another tool."""
    with _told_in_lines():
        from fmwsss.cluster.storage.folder import Folder
        from fmwsss.cluster.storage.ledger import Run
        from fmwsss.jobs.commands.convert import run as convert_run

        print(convert_run(Run(Folder(run)), to, output, of, polygons, only_images))


@app.command()
def view(
    run: RunUrl,
    against: Annotated[str | None, typer.Option(metavar="RUN", help="another run: what changed, most first")] = None,
    edit: Annotated[bool, typer.Option("--edit", help="allow corrections, which go to RUN/review/")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of this machine; left out, any that is free")] = 0,
    who: Annotated[str | None, typer.Option(help="with --edit: the name in the corrections")] = None,
    browser: Annotated[bool, typer.Option("--browser", help="open the address in a browser")] = False,
) -> None:
    """Look at every image of a run in a browser, on this machine alone, and correct its seeds."""
    with _told_in_lines():
        try:
            from fmwsss.jobs.view.serve import run as serve
        except ModuleNotFoundError as error:
            if error.name not in ("starlette", "uvicorn"):
                raise
            raise InputError(f"{error.name} is not installed: pip install 'fmwsss[view]'") from None
        serve(run, against, edit, port, who, browser)


@app.command(name="try")
def try_image(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="path of an image")],
    labels: Annotated[str, typer.Option(help="the classes that it shows, such as person,horse")],
    overrides: Overrides = None,
    config: Annotated[str, typer.Option(help="run file or preset: its models, and its run's prompts")] = "voc12",
    output: Annotated[str, typer.Option(help="where the PNG goes")] = "try.png",
) -> None:
    """Make the seed of one image, without a run and without Ray: seed, superpixels and class maps in one PNG."""
    with _told_in_lines():
        from fmwsss.jobs.commands.photograph import read_photograph

        settings = load_config(config, overrides)
        names = [name.strip() for name in labels.split(",") if name.strip()]
        photograph = read_photograph(settings, image, names, output)
        from fmwsss.jobs.commands.try_image import run

        with told_out_of_memory("give a smaller image, or a machine with more memory"):
            print("\n".join(run(settings, photograph, output)))


@app.command()
def init(
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="a folder of images; or a VOC root, YOLO's YAML file, tars, Parquet")
    ],
    labels: Annotated[
        str | None,
        typer.Argument(metavar="[LABELS]", help="a table or a COCO json; left out, it is looked for"),
    ] = None,
    output: Annotated[str | None, typer.Option(help="the run file; left out, named after the folder")] = None,
    classes: Annotated[
        str | None, typer.Option(help="of images without labels, such as person,horse: CLIP says what each shows")
    ] = None,
) -> None:
    """Look at images and labels, and write a run file with comments for `fmwsss run`."""
    with _told_in_lines():
        from fmwsss.jobs.commands.init import run

        print("\n".join(run(images, labels, output, classes)))


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, help="how many images to measure with")] = 4,
) -> None:
    """Check whether a run can succeed and tell what it will take; exit code 1 if it can't."""
    with _told_in_lines():
        settings = load_config(config, overrides)
        from fmwsss.jobs.commands.plan import run

        if not run(settings, images):
            sys.exit(1)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|RUN_FILE]...", help="such as vit_h, or a run file for all that it names"),
    ] = None,
) -> None:
    """Fetch weights into this machine's cache; without a name list the known ones."""
    with _told_in_lines():
        from fmwsss.jobs.commands.fetch import run

        run(names or [])


@app.command()
def doctor(
    address: Annotated[
        str | None, typer.Option(help="a cluster to look at; left out, the one around, or this machine")
    ] = None,
) -> None:
    """Tell what this machine or cluster has and lacks; exit code 1 if it lacks something that a run needs."""
    with _told_in_lines():
        from fmwsss.jobs.commands.doctor import run

        if not run(address):
            sys.exit(1)


@app.command()
def status(run: RunUrl, as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False) -> None:
    """Show how far a run is, from any machine that sees its folder."""
    with _told_in_lines():
        import json

        from fmwsss.cluster.storage.folder import Folder
        from fmwsss.cluster.storage.ledger import Run
        from fmwsss.jobs.commands.status import gather, show

        state = gather(Run(Folder(run)))
        if as_json:
            print(json.dumps(state, indent=2))
        else:
            show(state)


@app.command()
def logs(
    run: RunUrl,
    image: Annotated[str, typer.Option(help="id of an image")],
) -> None:
    """Show where an image was at work and when, why it failed, and what its worker wrote on this machine."""
    with _told_in_lines():
        from fmwsss.cluster.storage.folder import Folder
        from fmwsss.cluster.storage.ledger import Run
        from fmwsss.jobs.commands.logs import run as tell

        print("\n".join(tell(Run(Folder(run)), image)))


@app.command()
def verify(
    run: RunUrl,
    mend: Annotated[bool, typer.Option("--mend", help="have what is damaged made again by the next start")] = False,
) -> None:
    """Read every file of a run and compare it with what was written; exit code 1 if one is damaged."""
    with _told_in_lines():
        from fmwsss.cluster.storage.folder import Folder
        from fmwsss.cluster.storage.ledger import Run
        from fmwsss.jobs.commands.verify import run_command

        if not run_command(Run(Folder(run)), mend):
            sys.exit(1)


@app.command()
def tune(
    config: ConfigPath,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="images of the sample")] = 40,
) -> None:
    """Choose source, alpha and scales of the fine seeds on a sample, without ground truth; no cluster is used."""
    with _told_in_lines():
        settings = load_config(config, overrides)
        from fmwsss.jobs.commands.tune import run

        print("\n".join(run(settings, count)))


@app.command()
def schema(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="as the page docs/run_file.md")] = False,
) -> None:
    """Print the JSON schema of run files, for editors: every key with its type, default and description."""
    import json

    from fmwsss.jobs.config.schema import editor_schema, markdown

    print(markdown() if as_markdown else json.dumps(editor_schema(), indent=2, ensure_ascii=False))


prompts_app = typer.Typer(no_args_is_help=True, help="Look at learned prompts.")
app.add_typer(prompts_app, name="prompts")


@prompts_app.command("show")
def show_prompts(
    run: RunUrl,
    kind: Annotated[
        Literal["classification", "segmentation"] | None, typer.Option(help="one set of prompts; without it both")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="words for each context vector")] = 3,
    config: Annotated[str | None, typer.Option(help="a run file that names the CLIP, instead of the manifest")] = None,
) -> None:
    """List the real words nearest to each learned context vector."""
    with _told_in_lines():
        from fmwsss.jobs.commands.show_prompts import show

        show(run, kind, count, config)


def _config_of(run: str, overrides: list[str] | None, unread: Sequence[str] = ()) -> RunConfig:
    """The settings of a run file or a preset, or those that a run folder was made with."""
    from fmwsss.jobs.config.run_file import preset_names

    # A folder that is called as a preset is meant by its path, `./demo`; what is neither is told as a run file is.
    is_path = "/" in run or os.path.isdir(run)
    if run.endswith((".yaml", ".yml")) or run in preset_names() or not is_path:
        return load_config(run, overrides)
    from fmwsss.cluster.storage.folder import Folder
    from fmwsss.cluster.storage.ledger import Run
    from fmwsss.jobs.config.load import config_of

    return config_of(Run(Folder(run)), overrides, unread)


def _execute(
    path: str,
    overrides: list[str] | None,
    only: list[str] | None,
    restart_from: str | None = None,
    **changes: bool,
) -> None:
    """Loads the run file, looks at what it names, and runs."""
    with _told_in_lines():
        config = _config_of(path, overrides)
        # Only now: a mistake should not cost the import of Ray and torch.
        if only is None:
            from fmwsss.jobs.commands.preflight import look

            look(config)
        print("starting", flush=True)
        from fmwsss.jobs import steps

        steps.run(config, only, restart_from, **changes)


def _stage_command(name: str) -> Any:
    """The command that makes the stages of a name; None if there are none of that name, now or before."""
    from fmwsss.jobs.steps import DECLARED

    declared = next((own for own in DECLARED if name in (own.name, *own.old_names)), None)
    if declared is None:
        return None

    def make(config: ConfigPath, overrides: Overrides = None) -> None:
        _execute(config, overrides, [name])

    one = typer.Typer(add_completion=False)
    one.command(name=name, help=declared.about, rich_help_panel=STAGES_PANEL)(make)
    return typer.main.get_command(one)


@contextlib.contextmanager
def _told_in_lines() -> Iterator[None]:
    """A mistake that a user can put right is a line and exit code 2; an interrupt is 130."""
    try:
        yield
    except KeyboardInterrupt:
        from fmwsss.cluster.storage.driver_signals import exit_code

        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(exit_code())
    except FmwsssError as error:
        if os.environ.get("FMWSSS_DEBUG"):
            print(plain(traceback.format_exc()), file=sys.stderr)
        print(f"fmwsss: {_one_line_each(error)}", file=sys.stderr)
        sys.exit(error.exit_code)


def _one_line_each(error: BaseException) -> str:
    # From a worker of Ray it comes with the worker's traceback around it, which is for bugs.
    error = getattr(error, "cause", None) or error
    return plain("\nfmwsss: ".join(line for line in str(error).splitlines() if line.strip()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the installed command.

    Args:
        arguments: of the command line; None for those of this process.
    """
    try:
        with _told_in_lines():
            _demand_utf8()
            _demand_docstrings()
            demand_times()
            app(arguments, prog_name="fmwsss")
    except Exception:
        # Not `sys.excepthook`: Typer puts its own there.
        print(plain(traceback.format_exc()), end="", file=sys.stderr)
        print(f"fmwsss: {A_BUG}", file=sys.stderr)
        sys.exit(1)


def _demand_docstrings() -> None:
    """Ray Data reads its own, and can't be imported without."""
    if sys.flags.optimize > 1:
        raise InputError("Ray does not run without docstrings: unset PYTHONOPTIMIZE, or set it to 1")


def _demand_utf8() -> None:
    """File names, run files and reports are UTF-8; in another locale the first umlaut would end a run in its middle."""
    if sys.getfilesystemencoding().replace("-", "").lower() != "utf8":
        raise InputError(f"the locale is {sys.getfilesystemencoding()}, not UTF-8: set PYTHONUTF8=1, or LC_ALL=C.UTF-8")
