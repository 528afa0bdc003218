"""Numbers that others have published, to read one's own beside: never measured here.

They are of other data, units and machines. Scores are accuracies in percent with chance at 50.
"""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "Hassid et al. 2023, Textually Pretrained Speech Language Models (arXiv 2305.13009)"
SUITES = ("sWUGGY, all", "sWUGGY, in vocabulary", "sBLIMP", "sSC", "tSC")
"""Figures as papers call them; sSC and tSC are spoken and topic StoryCloze."""
CHANCE_PERCENT = 50


class Published(NamedTuple):
    """One system of the paper: a score in percent for each suite that its tables give it."""

    system: str
    percents: dict[str, float]

    @property
    def cells(self) -> list[str]:
        """In the order of `SUITES`; a dash where the paper was not found to give any."""
        return [f"{self.percents[s]:.1f}" if s in self.percents else "-" for s in SUITES]


SYSTEMS = (
    Published("TWIST-350M, warm", {"sBLIMP": 56.2}),
    Published("TWIST-1.3B, cold", {"sBLIMP": 56.5}),
    Published("TWIST-1.3B, warm", {"sBLIMP": 57.0, "sSC": 52.4, "tSC": 70.6}),
    Published("TWIST-7B, warm", {"sBLIMP": 59.0, "sSC": 55.3, "tSC": 74.1}),
    Published(
        "TWIST-13B, warm",
        {
            "sWUGGY, all": 74.5,
            "sWUGGY, in vocabulary": 84.1,
            "sBLIMP": 59.2,
            "sSC": 55.4,
            "tSC": 76.4,
        },
    ),
    Published("people", {"sSC": 79.9, "tSC": 90.2}),
)
CLAIMS = (
    "warm start is better than cold at every size",
    "warm has cold's perplexity after about a quarter of the updates",
    "warm on a tenth of the data is comparable with cold on all of it",
)
"""What the paper finds of warm starts."""
SPEEDS = (
    "language model training in bf16 at 2,048 tokens: MFU 35 to 46 % on H100 (760M to 6.7B), "
    "52 to 60 % on A100 (350M to 1.3B)",
    "units by fairseq's HuBERT, one file at a time: 360 times real time on an RTX A6000",
)
"""What others report of speed, for reference."""
