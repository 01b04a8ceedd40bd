"""Published weight files that a run file may name instead of a place: one table, each with its address and sha256.

Addresses and sums of OpenAI's files stand in its own program (github.com/openai/CLIP, clip/clip.py: the sum is part of
the address); those of segment-anything and MobileSAM in micro-sam (micro_sam/util.py). What nobody vouches for is not
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["clip", "sam"]
QUICKGELU = "-quickgelu"


@dataclass(frozen=True)
class KnownWeights:
    """One published file.

    Attributes:
        role: what it is of.
        model: the architecture that it belongs to, activation included.
        tag: its name among the files for this architecture; None for the only one.
        url: where it is published.
        sha256: of the file.
    """

    role: Role
    model: str
    tag: str | None
    url: str
    sha256: str

    @property
    def name(self) -> str:
        """What `fmwsss fetch` calls it: `vit_h`, `ViT-B-16-quickgelu/openai`."""
        return f"{self.model}/{self.tag}" if self.tag else self.model


def _of_openai(model: str, file: str, sha256: str) -> KnownWeights:
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"
    return KnownWeights("clip", f"{model}{QUICKGELU}", "openai", url, sha256)


def _of_sam(model: str, file: str, sha256: str) -> KnownWeights:
    return KnownWeights("sam", model, None, f"https://dl.fbaipublicfiles.com/segment_anything/{file}", sha256)


KNOWN_WEIGHTS = (
    _of_openai("ViT-B-32", "ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    _of_openai("ViT-B-16", "ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    _of_openai("ViT-L-14", "ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    _of_openai("ViT-L-14-336", "ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
    _of_sam("vit_h", "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    _of_sam("vit_l", "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    _of_sam("vit_b", "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    KnownWeights(
        "sam",
        "vit_t",  # MobileSAM
        None,
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
)


def find_known(role: Role, model: str | None, weights: str | None) -> KnownWeights | None:
    """The file that a run file means by its `model` and `weights`, if it is one of the table.

    OpenAI's files are meant with and without `-quickgelu` in the name of the architecture.

    Args:
        role: clip or sam.
        model: architecture of the run file.
        weights: name, tag or path of the run file.

    Returns:
        A line of the table, or None.
    """
    for known in KNOWN_WEIGHTS:
        is_model = model in (known.model, known.model.removesuffix(QUICKGELU))
        if known.role == role and (weights == known.name or (is_model and weights == known.tag)):
            return known
    return None


def named(name: str) -> KnownWeights | None:
    """The file that `fmwsss fetch` calls so."""
    return next((known for known in KNOWN_WEIGHTS if known.name == name), None)


def is_of_openai(sha256: str | None) -> bool:
    """Whether a file is one of OpenAI's CLIPs, by its sum."""
    return any(known.sha256 == sha256 and known.tag == "openai" for known in KNOWN_WEIGHTS)
