"""The schema of a run file for editors (JSON Schema) and for readers (docs/run_file.md)."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from fmwsss.jobs.config.run import RunConfig

_INTRODUCTION = """# The run file

Written by `fmwsss schema --markdown` from the descriptions in `jobs/config/`; a test keeps it
current.

A run file is YAML, in UTF-8. What is left out has its default. Numbers such as M5.1 are sections of
[docs/method.md](../docs/method.md). Rows of the tables are long; the rest of this page is wrapped.

- `base: voc12` lays a run file over a preset, `base: other.yaml` over another run file beside it,
  and `base: [voc12, other.yaml]` over both, the later over the earlier. Sections are laid over key
  by key; a section of another `kind`, and a `factory` over a `model`, replaces that of the base. To
  go back to a default, write its value; `null` is a value only where this page says so.
- `method: paper`, `authors` or `ours` lays the numbers of a method (`configs/methods/`) over the
  bases and under the file's own keys.
- On the command line, `key.path=value` is laid over all of them; the value is YAML:
  `fmwsss run mine.yaml propose.crop_layers=1 'vocabulary.classes=[horse, car]'`.
- A key given twice, an unknown key and a value of another type are refused in one line each. YAML
  reads `no`, `off`, `yes` and `on` as true and false: quote such names.
- Editors complete keys and show descriptions from `fmwsss schema > run_file.schema.json` and, as
  the first line of a run file: `# yaml-language-server: $schema=run_file.schema.json`
"""


def editor_schema() -> dict[str, Any]:
    """The JSON Schema of a run file as it is written: with `base`, so nothing is required."""
    schema = RunConfig.model_json_schema()
    description = "A run file or preset that this one is laid over, or a list of them, the later over the earlier."
    texts = {"type": "array", "items": {"type": "string"}}
    base = {"anyOf": [{"type": "string"}, texts], "description": description}
    method = {"type": "string", "description": "Numbers of a method: paper, authors, ours, or a file of one's own."}
    # `labels: {from: clip}` is understood too; `from` is no name of a field in Python.
    own = schema["$defs"]["LabelsSection"]["properties"]
    own["from"] = {**own["source"], "description": "The same as `source`."}
    schema["properties"] = {"base": base, "method": method, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_optional(schema)}


def _optional(node: Any) -> Any:
    """A schema without required keys; a part of a section may fit several of its kinds."""
    if isinstance(node, list):
        return [_optional(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    names = {"oneOf": "anyOf"}
    dropped = {"required", "discriminator"} if "properties" in node or "oneOf" in node else set()
    # Names of keys are no words of the schema.
    return {
        names.get(key, key): {name: _optional(inner) for name, inner in value.items()}
        if key in ("properties", "$defs")
        else _optional(value)
        for key, value in node.items()
        if key not in dropped
    }


def markdown() -> str:
    """The page docs/run_file.md: a table for each section, with key, type, default and description."""
    schema = RunConfig.model_json_schema()
    places: dict[str, list[str]] = {}
    _find_sections(schema, schema, "", places)
    pages = [_INTRODUCTION, _table(schema, schema)]
    for name, keys in places.items():
        section = schema["$defs"][name]
        kind = section["properties"].get("kind", {}).get("const")
        title = ", ".join(f"`{key}`" for key in keys) + (f" with `kind: {kind}`" if kind else "")
        pages.append(f"## {title}\n\n{_wrapped(section.get('description', ''))}\n\n{_table(section, schema)}")
    return "\n".join(pages).rstrip()


def _find_sections(node: dict[str, Any], schema: dict[str, Any], key: str, places: dict[str, list[str]]) -> None:
    """Adds to `places` under which keys each section of the schema stands, in the order of the run file."""
    for name, value in node.get("properties", {}).items():
        path = f"{key}.{name}" if key else name
        for reference in _references(value):
            keys = places.setdefault(reference, [])
            if path not in keys and path.count(".") < 5:  # a section may hold its own kind
                keys.append(path)
                _find_sections(schema["$defs"][reference], schema, path, places)


def _references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for inner in node for name in _references(inner)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"].rpartition("/")[2]] if "$ref" in node else []
    return own + [
        name for key, inner in node.items() if key not in ("default", "discriminator") for name in _references(inner)
    ]


def _table(section: dict[str, Any], schema: dict[str, Any]) -> str:
    lines = ["| key | type | default | description |", "|---|---|---|---|"]
    required = section.get("required", [])
    for name, field in section["properties"].items():
        references = _references(field)
        told = field.get("description") or schema["$defs"][references[0]]["description"]
        cells = [f"`{name}`", _type_of(field), _default(field, name in required), " ".join(told.split())]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(field: dict[str, Any], is_required: bool) -> str:
    if is_required:
        return "required"
    if "default" not in field or (isinstance(field["default"], dict) and _references(field)):
        return "its defaults"
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`"


def _type_of(field: dict[str, Any]) -> str:
    for choice in ("anyOf", "oneOf"):
        if choice in field:
            return " or ".join(dict.fromkeys(_type_of(option) for option in field[choice]))
    if "$ref" in field:
        return "section"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        if "prefixItems" in field:
            return f"[{', '.join(_type_of(item) for item in field['prefixItems'])}]"
        return f"list of {_type_of(field['items'])}"
    names = {
        "integer": "integer",
        "number": "number",
        "boolean": "true or false",
        "string": "text",
        "object": "mapping",
    }
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]
    return " ".join([names.get(field.get("type", ""), str(field.get("type", "anything"))), *limits])


def _wrapped(text: str) -> str:
    return "\n\n".join(
        textwrap.fill(" ".join(part.split()), 100, break_on_hyphens=False) for part in text.split("\n\n")
    )
