"""Trees of prompts: every prompt can be read off, and nothing is there twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fmwsss.core.clip.prefix_tree import token_tree

PROMPTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=8)


@given(PROMPTS)
def test_a_node_is_a_beginning_and_every_prompt_can_be_read(prompts: list[list[int]]):
    tree = token_tree(prompts)
    for row, prompt in enumerate(prompts):
        path = tree.path[row].tolist()
        assert int(tree.end[row]) == len(prompt) - 1
        assert [tree.symbols[node] for node in path[: len(prompt)]] == prompt
        assert set(path[len(prompt) - 1 :]) == {path[len(prompt) - 1]}
    beginnings = {tuple(prompt[: i + 1]) for prompt in prompts for i in range(len(prompt))}
    assert len(tree.symbols) == len(beginnings)
    for node, (owner, place) in enumerate(zip(tree.owner.tolist(), tree.position.tolist(), strict=True)):
        assert int(tree.path[owner, place]) == node
    whole = [owner[:place] for owner, place in zip(_symbols(prompts, tree.owner), tree.position + 1, strict=True)]
    for node, beginning in enumerate(whole):
        above = [tuple(other) for other, is_above in zip(whole, tree.above[node].tolist(), strict=True) if is_above]
        assert sorted(above) == sorted(tuple(beginning[: i + 1]) for i in range(len(beginning)))


def _symbols(prompts: list[list[int]], owner: Tensor) -> list[list[int]]:
    return [prompts[row] for row in owner.tolist()]
