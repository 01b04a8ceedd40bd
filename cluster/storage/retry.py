"""Forgetting failed images, so that the next start tries them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fmwsss.cluster.storage.ledger import Run


def forget(run: Run, stage: str | None = None) -> dict[str, int]:
    """Has the parts in which images failed, and all that was made from them, made again by the next start.

    A part of a stage is made from the parts of the same name that it reads, and from the whole of what has no parts
    (learned prompts): so SAM's masks of the other parts stay, and prompts are learned anew where their images change.

    Args:
        run: the run folder.
        stage: only failures of this stage, or of those in the folder of this name; None means of all.

    Returns:
        Number of images to be tried again, by stage.
    """
    stages = run.stages()
    names = [name for name in stages if stage is None or f"{name}/".startswith(f"{stage}/")]
    failed = {name: _failed_parts(run, name) for name in names}
    stale = _stale_parts(run, stages, {name: set(parts) for name, parts in failed.items() if parts})
    _do_again(run, stages, stale)
    return {name: sum(parts.values()) for name, parts in failed.items() if parts}


def redo(
    run: Run,
    after: Mapping[str, Sequence[str]],
    changed: Mapping[str, set[str]],
    with_learned: bool,
    images: Mapping[str, Mapping[str, set[str]]] | None = None,
) -> None:
    """Has parts of a stage, and what was made from them, made again by the next start.

    Args:
        run: the run folder.
        after: from `stages_after`, with the stages that each reads.
        changed: parts by stage: of the first one, and of each that reads it those in which what it reads of it changed.
        with_learned: whether what is learned from all images is learned anew; else it stays, and counts as unchanged.
        images: by stage and part, the only ones of which rows are made again; None, and what is not in it: all.
    """
    stale: dict[str, set[str] | None] = {
        name: set(parts) for name, parts in changed.items() if parts and name not in after
    }
    for name in after:
        own, local = run.within(name)
        parts: set[str] | None = set(changed.get(name, ()))
        if not own.parts(local):
            if with_learned and any(changed.values()):
                stale[name] = None
            continue
        for upstream in after[name]:
            more = stale.get(upstream, set()) if upstream in after else set()
            parts = None if parts is None or more is None else parts | more
        if parts is None or parts:
            stale[name] = parts
    _do_again(run, {name: list(after.get(name, ())) for name in stale}, stale, images)


def stages_after(run: Run, stage: str, names: Sequence[str] = ()) -> dict[str, list[str]]:
    """The stages that were begun and depend on one, in their order, with those that each reads.

    Args:
        run: the run folder.
        stage: its name.
        names: of stages that may not be in the manifest.
    """
    stages, found = run.stages(names), [stage]
    for name in _in_order(stages):
        if name not in found and set(stages.get(name, ())) & set(found):
            found.append(name)
    return {name: stages[name] for name in found[1:]}


def renew_reads(run: Run, names: Iterable[str]) -> None:
    """Lets stages take what they read as it is at their next start: what depends on a change was marked by `redo`.

    Args:
        run: the run folder.
        names: full names of stages.
    """
    for name in names:
        own, local = run.within(name)
        own.renew_reads(local)


def _do_again(
    run: Run,
    stages: dict[str, list[str]],
    stale: Mapping[str, set[str] | None],
    images: Mapping[str, Mapping[str, set[str]]] | None = None,
) -> None:
    # What reads goes before what it reads: killed in between, nothing that is left was made from what is gone. Nothing
    # is deleted before what replaces it is there, but for learned prompts, which are learned anew.
    for name in reversed(_in_order(stages)):
        if name not in stale:
            continue
        own, local = run.within(name)
        parts, written = stale[name], own.parts(local)
        if written:
            own.do_again(
                local,
                written if parts is None else sorted(parts),
                None if parts is None or images is None else images.get(name),
            )
        else:
            own.reset(local)


def _failed_parts(run: Run, stage: str) -> dict[str, int]:
    """Failed images of a stage by part."""
    own, local = run.within(stage)
    return own.failed_parts(local)


def _in_order(stages: dict[str, list[str]]) -> list[str]:
    """Stages, each after all that it reads."""
    order: list[str] = []

    def visit(name: str) -> None:
        for upstream in stages.get(name, []):
            visit(upstream)
        if name not in order:
            order.append(name)

    for name in sorted(stages):
        visit(name)
    return order


def _stale_parts(run: Run, stages: dict[str, list[str]], failed: dict[str, set[str]]) -> dict[str, set[str] | None]:
    """Parts of each stage that have to be done again; None for a whole stage."""
    stale: dict[str, set[str] | None] = {}
    has_parts: dict[str, bool] = {}
    for name in _in_order(stages):
        has_parts[name] = bool(run.parts(name))
        parts: set[str] | None = failed.get(name, set())
        for upstream in stages.get(name, []):
            changed: set[str] | None = stale.get(upstream, set())
            if changed is None or (changed and not has_parts[name]):
                parts = None
            elif parts is not None:
                parts = parts | changed
        if parts is None or parts:
            stale[name] = parts
    return stale
