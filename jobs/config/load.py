"""Reading a run file: one laid over another, overrides, and every mistake told at once in words that name the key."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Iterator
from datetime import date
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fmwsss.cluster.storage.ledger import Run
from fmwsss.cluster.storage.redaction import has_secret, redacted
from fmwsss.core.errors import InputError
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.config.run_file import laid_over, method_of, read_run_file
from fmwsss.jobs.config.yaml_text import ConfigError, read_yaml

_SAY_WHICH = "say which run file names it: --config RUN_FILE (for `predict` and `export` in place of RUN)"
# What pydantic puts between the keys of a section of which there are several kinds.
_CHOICES = {
    "toy",
    "voc",
    "folder",
    "class_folders",
    "coco",
    "yolo",
    "parquet",
    "webdataset",
    "unlabelled",
    "VocabularySection",
    "str",
    "gradcam",
    "patch",
    "given",
    "mixture",
}


def load_config(path: str, overrides: list[str] | None = None) -> RunConfig:
    """Reads a run file and lays `key.path=value` overrides over it; values are read as YAML.

    A run file with a key `base` is laid over what that names: the path of another beside it, a preset such as `voc12`,
    or a list of them, each laid over those before it. `method: NAME` lays the numbers of a method
    (`configs/methods/NAME.yaml`, or a file of one's own) over the bases and under the file's own keys; the override
    `method=NAME` over the whole file.

    Args:
        path: of a run file, or the name of a preset.
        overrides: settings laid over it.

    Raises:
        ConfigError: no such file, no YAML, or keys and values that are wrong; every one of them on its own line.
    """
    raw = read_run_file(path)
    own, rest = [], []
    for override in overrides or []:
        (own if override.partition("=")[0] == "method" else rest).append(override)
    if own and isinstance(raw, dict):
        seen = dict(raw)
        for override in (override for override in rest if override.partition("=")[0] == "vocabulary"):
            _lay_over(seen, override)
        raw = laid_over(raw, method_of(own[-1].partition("=")[2], path, seen))
    return check_config(raw, rest, path)


def check_config(raw: Any, overrides: list[str] | None, path: str) -> RunConfig:
    """The settings of a run file as it was read from `path`, with overrides laid over them.

    Args:
        raw: sections and keys.
        overrides: `key=value`, ...
        path: for the messages.

    Raises:
        ConfigError: a key or value is not what it may be; a line for each.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no settings")
    # First which kind a section is, for another kind empties it.
    for override in sorted(overrides or [], key=lambda override: not override.partition("=")[0].endswith(".kind")):
        _lay_over(raw, override)
    raw = _renewed(raw, path)
    if secret := list(_keys_of_secrets(raw)):
        # Manifests, receipts and messages repeat addresses; and this line must not.
        told = "may hold no user, password or signature; credentials come from the environment (docs/cluster.md)"
        raise ConfigError("\n".join(f"{path}: '{key}': an address {told}" for key in secret))
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = [_sentence(raw, mistake) for mistake in error.errors()]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None
    try:
        config.resolve_vocabulary()
    except ValueError as error:
        raise ConfigError(f"{path}: vocabulary: {error}") from None
    return config


def _renewed(raw: dict[str, Any], path: str) -> dict[str, Any]:
    """A run file with the keys of earlier versions in today's words, which are told.

    `cam_loss_weight: w` stood beside a loss on the logits whose weight was always 1.
    """
    learn = raw.get("learn")
    if not isinstance(learn, dict):
        return raw
    renewed = {}
    for which, section in learn.items():
        if not isinstance(section, dict) or "cam_loss_weight" not in section:
            continue
        weight = section["cam_loss_weight"]
        own = {key: value for key, value in section.items() if key != "cam_loss_weight"}
        renewed[which] = {"cam_loss": "cal", **own, "classification_weight": 1.0, "cam_weight": weight}
        print(
            f"{path}: 'learn.{which}.cam_loss_weight' is read as classification_weight: 1, cam_weight: {weight}; "
            "please write that (docs/prompts.md)",
            file=sys.stderr,
        )
    return {**raw, "learn": {**learn, **renewed}}


def _keys_of_secrets(value: Any, key: str = "") -> Iterator[str]:
    """Keys whose address has something before an `@`, or a query: signed addresses carry their signature there."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _keys_of_secrets(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _keys_of_secrets(inner, f"{key}.{number}")
    elif isinstance(value, str) and has_secret(value):
        yield key


def _addresses(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Whatever in a section is no path of this machine, with its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _addresses(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _addresses(inner, key)
    elif isinstance(value, str) and "://" in value:
        yield key, value


def _lay_over(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"an override looks like key=value, not {redacted(override)!r}")
    value = read_yaml(text, f"the value of {redacted(override)!r}")
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    if last == "kind" and node.get("kind", value) != value:
        node.clear()
    node[last] = value


def _sentence(raw: Any, mistake: Any) -> str:
    """One mistake of pydantic's list as one sentence that names the key as it stands in the file."""
    path = [part for part in mistake["loc"] if part not in _CHOICES]
    key = ".".join(str(part) for part in path) or "the run file"
    if mistake["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), _known_keys(path[:-1], raw), n=1)
        hint = f"; did you mean '{'.'.join([*map(str, path[:-1]), near[0]])}'?" if near else ""
        return f"Unknown key: '{key}'{hint}"
    if mistake["type"] == "missing":
        return f"Missing key: '{key}'"
    given = mistake["input"]
    if given is None and mistake["type"] != "value_error":
        field = _field_at(path)
        default = f"; the default is {field.default}" if field and isinstance(field.default, str | int | float) else ""
        return f"'{key}': null is no value of it{default}"
    if mistake["type"] == "invalid_key":
        return f"'{key}': keys are text; put {given!r} in quotes"
    if mistake["type"] == "string_type" and isinstance(given, bool):
        return f"'{key}': YAML reads no, off, yes and on as {given}; put it in quotes to have the word"
    message = str(mistake["msg"]).removeprefix("Value error, ")
    hint = "; put it in quotes" if mistake["type"] == "string_type" and isinstance(given, int | float | date) else ""
    told = "" if isinstance(given, dict) else f" (given: {given!r})"
    return f"'{key}': {message[0].lower() + message[1:]}{told}{hint}"


def _field_at(path: list[Any]) -> FieldInfo | None:
    """What the schema says of a key; None inside a list, and of a key that only one of several kinds has."""
    section: Any = RunConfig
    field = None
    for part in path:
        field = getattr(section, "model_fields", {}).get(part)
        section = field.annotation if field else None
    return field


def _known_keys(path: list[Any], raw: Any) -> list[str]:
    """The keys that the schema has at a path; for a choice of sections, those of the section that was chosen."""
    schema = TypeAdapter(RunConfig).json_schema()
    definitions = schema.get("$defs", {})
    node = schema
    for part in path:
        node = node.get("properties", {}).get(part, {})
        raw = raw.get(part, {}) if isinstance(raw, dict) else {}
        options = node.get("anyOf", []) + node.get("allOf", []) + node.get("oneOf", [])
        # Of a section that may be left out the choice is one level down.
        choice = next((option["discriminator"] for option in [node, *options] if "discriminator" in option), {})
        mapping = choice.get("mapping")
        reference = mapping.get(raw.get("kind"), "") if mapping and isinstance(raw, dict) else node.get("$ref", "")
        reference = reference or next((option["$ref"] for option in options if "$ref" in option), "")
        node = definitions.get(reference.rpartition("/")[2], {})
    return list(node.get("properties", {}))


def config_of(run: Run, overrides: list[str] | None, unread: Collection[str] = ()) -> RunConfig:
    """The settings that a run was made with, from its manifest; overrides may say where to run now.

    A run folder may come from anybody: it decides neither what is executed, nor which cluster executes it, nor what
    addresses are asked.

    Args:
        run: the run folder.
        overrides: settings laid over the manifest's.
        unread: keys of the run file that the caller follows nowhere.

    Args:
        run: the run folder.
        overrides: `key=value`, ...

    Raises:
        ValueError: there is no run, an override is wrong, or the manifest names a cluster, a factory, or an address,
            that no override names too.
    """
    manifest = run.manifest()
    if manifest is None:
        raise InputError(f"there is no run at {redacted(run.folder.url)}: it has no manifest.json")
    told = manifest.get("config") if isinstance(manifest, dict) else None
    if not isinstance(told, dict):
        raise InputError(f"{run.folder.url}/manifest.json is damaged: it has no settings")
    if "cluster" in told:
        raise InputError(
            f"{run.folder.url}/manifest.json has settings of a cluster, which ours never have: what it names is not "
            "connected to. Take them out, and say where to run by an override such as cluster.address=HOST:PORT"
        )
    config = check_config({**told, "run": run.folder.url}, overrides, f"{run.folder.url}/manifest.json")
    ours = {override.partition("=")[0] for override in overrides or []}
    sections = {"clip": config.clip, "sam": config.sam, "segmenter": config.segmenter}
    theirs = [name for name, section in sections.items() if section is not None and section.factory]
    if any(not {name, f"{name}.factory"} & ours for name in theirs):
        raise InputError(f"a model of this run comes from a factory; {_SAY_WHICH}")
    for key, address in _addresses(config.model_dump(mode="json", exclude={"run", *unread})):
        parts = key.split(".")
        if not ours & {".".join(parts[: num_parts + 1]) for num_parts in range(len(parts))}:
            kind = "weights at an address" if parts[-1] == "weights" else "an address"
            asked = "they are fetched" if parts[-1] == "weights" else "it is asked"
            raise InputError(
                f"the manifest of this run names {kind}, {redacted(address)}: {asked} only if you say so, by "
                f"{key}=... among the settings; or {_SAY_WHICH}"
            )
    return config
