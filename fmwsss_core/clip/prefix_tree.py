"""Prefix tree of prompts: a shared prefix is encoded once, since the text encoder is causal."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenTree:
    """Every different beginning of some prompts once. A node is a token together with all tokens before it.

    Attributes:
        symbols: what stands at each node: whatever the prompts were made of.
        position: place of each node in its prompts, from 0.
        path: the nodes of each prompt in order, filled up with its last one.
        end: last position of each prompt.
        owner: one of the prompts that each node belongs to.
        above: whether the second node is the first one, or comes before it in its prompts.
    """

    symbols: tuple[Hashable, ...]
    position: Int[Tensor, "nodes"]
    path: Int[Tensor, "prompts length"]
    end: Int[Tensor, "prompts"]
    owner: Int[Tensor, "nodes"]
    above: Bool[Tensor, "nodes nodes"]

    def to(self, device: torch.device) -> TokenTree:
        """The same on another device."""
        moved = (tensor.to(device) for tensor in (self.position, self.path, self.end, self.owner, self.above))
        return TokenTree(self.symbols, *moved)


def token_tree(prompts: Sequence[Sequence[Hashable]]) -> TokenTree:
    """The tree of some prompts; two tokens are the same where their symbols and all symbols before them are equal.

    Args:
        prompts: from the first token to the one whose output is wanted, such as [EOS]; at least one, none empty.
    """
    node_of: dict[tuple[int, Hashable], int] = {}
    symbols, position, owner, paths = [], [], [], []
    for row, prompt in enumerate(prompts):
        node, path = -1, []
        for place, symbol in enumerate(prompt):
            parent, node = node, node_of.setdefault((node, symbol), len(symbols))
            if node == len(symbols):
                symbols.append(symbol)
                position.append(place)
                owner.append(row)
            assert node > parent
            path.append(node)
        paths.append(path)
    length = max(map(len, paths))
    above = torch.zeros(len(symbols), len(symbols), dtype=torch.bool)
    for path in paths:
        for place, node in enumerate(path):
            above[node, path[: place + 1]] = True
    return TokenTree(
        symbols=tuple(symbols),
        position=torch.tensor(position),
        path=torch.tensor([path + path[-1:] * (length - len(path)) for path in paths]),
        end=torch.tensor([len(path) - 1 for path in paths]),
        owner=torch.tensor(owner),
        above=above,
    )
