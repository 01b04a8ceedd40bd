"""Reading a run file: what it is laid over, be it another file, a preset, or the numbers of a method."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from fmwsss.cluster.storage.redaction import redacted
from fmwsss.jobs.config.yaml_text import ConfigError, read_file

# In the repository configs/, in site-packages fmwsss/configs.
PRESETS = Path(__file__).resolve().parents[2] / "configs"
METHODS = PRESETS / "methods"
MAX_BASES = 8  # of a run file, one below the other


def read_run_file(path: str, num_below: int = 0) -> Any:
    """The settings of a run file, or of a preset by its name, laid over those that its `base` names.

    Args:
        path: of a YAML file, or the name of a preset, such as `voc12`.
        num_below: how many run files have this one as their base.

    Raises:
        ConfigError: no such file, no YAML that can be taken, or bases in a circle.
    """
    if num_below > MAX_BASES:
        raise ConfigError(f"{path}: run files are each other's `base`")
    file = Path(path) if path.endswith((".yaml", ".yml")) else preset(path)
    raw = read_file(file)
    if not isinstance(raw, dict) or not {"base", "method"} & raw.keys():
        return raw
    own = {key: value for key, value in raw.items() if key not in ("base", "method")}
    bases = raw.get("base", [])
    settings: Any = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: 'base' is a run file, the name of a preset, or a list of them (given: {base})")
        below = str(file.parent / base) if base.endswith((".yaml", ".yml")) else base
        settings = laid_over(settings, read_run_file(below, num_below + 1))
    if "method" in raw:
        settings = laid_over(settings, method_of(str(raw["method"]), str(file), laid_over(settings, own)))
    return laid_over(settings, own)


def preset_names() -> list[str]:
    """Names of the run files that come with the package."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def preset(name: str) -> Path:
    """The file of a preset.

    Raises:
        ConfigError: there is none of that name; the line tells which there are.
    """
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"presets are {', '.join(names)}"
        raise ConfigError(f"{redacted(name)} is neither a run file, whose name ends in .yaml, nor a preset; {hint}")
    return PRESETS / f"{name}.yaml"


def method_layer(name: str, vocabulary: str | None, network: str | None = None) -> dict[str, Any]:
    """The numbers of a method, as keys of a run file.

    Args:
        name: of a file in `configs/methods`, or a path of one's own that ends in `.yaml`.
        vocabulary: of the run file: what the method's file has under `for` and this name is laid over the rest.
        network: of the run file's segmenter, if it trains one: what stands under `for_network` goes into `segmenter`.

    Raises:
        ConfigError: there is no such method.
    """
    path = Path(name) if name.endswith(".yaml") else METHODS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in METHODS.glob("*.yaml")))
        raise ConfigError(f"there is no method {name!r}; there are {known}, and files of your own that end in .yaml")
    raw = read_run_file(str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no settings")
    of_vocabularies = raw.pop("for", {})
    layer = laid_over(raw, of_vocabularies.get(vocabulary, {}))
    of_networks = layer.pop("for_network", {})
    return laid_over(layer, {"segmenter": of_networks[network]}) if network in of_networks else layer


def method_of(name: str, path: str, raw: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a method for a run file.

    Args:
        name: of the method, or a path beside the run file.
        path: of the run file, or the name of a preset.
        raw: its settings, which say the vocabulary and the segmenter's network.

    Raises:
        ConfigError: there is no such method.
    """
    vocabulary, segmenter = raw.get("vocabulary"), raw.get("segmenter")
    network = segmenter.get("network", "mask2former") if isinstance(segmenter, dict) else None
    if name.endswith(".yaml") and not Path(name).is_absolute():
        name = str(Path(path).parent / name)
    return method_layer(name, vocabulary if isinstance(vocabulary, str) else "custom", network)


def laid_over(below: Any, above: Any) -> Any:
    """Settings over others: sections key by key, anything else as a whole.

    A section of another kind replaces the one below: keys of one kind of data set say nothing of another.

    Args:
        below: the base.
        above: wins.

    Returns:
        New dictionaries; none is changed.
    """
    if not (isinstance(below, dict) and isinstance(above, dict)) or _is_another_kind(below, above):
        return above
    return {**below, **{key: laid_over(below.get(key), value) for key, value in above.items()}}


def _is_another_kind(below: dict[str, Any], above: dict[str, Any]) -> bool:
    if "kind" in below and "kind" in above:
        return below["kind"] != above["kind"]
    return ("model" in below and "factory" in above) or ("factory" in below and "model" in above)
