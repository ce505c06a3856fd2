"""Checkpoints that the stage transition is tried on: architectures, layouts, optimizers and formats."""

import itertools
from dataclasses import dataclass
from typing import Literal

from model_zoo import ARCHITECTURES, SaveJob

LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2))
#: Where a checkpoint of each layout is loaded.
LOADED_AT = {(1, 1): (2, 2), (2, 1): (1, 2), (1, 2): (2, 1), (2, 2): (1, 1)}
#: It cannot run on a CPU, so it has no loss, and no training step.
NOT_RUN = "mamba"


@dataclass(frozen=True)
class Case:
    arch: str
    layout: tuple[int, int]
    optimizer: Literal["none", "plain", "distributed"]
    format: Literal["torch_dist", "torch"] = "torch_dist"
    vpp: int = 1
    ep: int = 1

    @property
    def name(self) -> str:
        sizes = f"tp{self.layout[0]}pp{self.layout[1]}vpp{self.vpp}ep{self.ep}"
        return f"{self.arch}-{sizes}-{self.optimizer}-{self.format}"

    @property
    def job(self) -> SaveJob:
        tp, pp = self.layout
        return SaveJob(
            name=self.name,
            arch=self.arch,
            tp=tp,
            pp=pp,
            vpp=self.vpp,
            ep=self.ep,
            optimizer=self.optimizer,
            format=self.format,
        )

    @property
    def loaded_at(self) -> tuple[int, int]:
        return LOADED_AT[self.layout]


LEGACY = (
    Case("llama", (2, 2), "none", "torch", vpp=2),
    Case("tied", (1, 2), "distributed", "torch"),
    Case("moe", (1, 2), "distributed", "torch", ep=2),
    Case("mtp", (2, 2), "none", "torch"),
)
#: Every architecture, every layout, with and without an optimizer; all combinations take minutes.
FEW = (
    *(
        Case(arch, LAYOUTS[i % 4], "none" if arch == NOT_RUN or (i // 4 + i) % 2 else "distributed")
        for i, arch in enumerate(ARCHITECTURES)
    ),
    Case("llama", (1, 2), "plain", vpp=2),
    Case("moe", (2, 1), "none", ep=2),
    *LEGACY,
)
ALL = (
    *FEW,
    *(
        Case(arch, layout, optimizer)
        for arch, layout, optimizer in itertools.product(ARCHITECTURES, LAYOUTS, ("none", "plain", "distributed"))
        if arch != NOT_RUN or optimizer == "none"
    ),
    *(
        Case(arch, layout, optimizer, "torch", vpp=vpp)
        for arch, layout, optimizer in itertools.product(ARCHITECTURES, LAYOUTS, ("none", "distributed"))
        for vpp in (1, layout[1])
        if arch != NOT_RUN
    ),
    *(Case(arch, (1, 2), "distributed", vpp=2) for arch in ARCHITECTURES if arch != NOT_RUN),
    *(
        Case(arch, layout, "distributed", kind, ep=2)
        for arch, layout, kind in itertools.product(
            ("moe", "moe_bias", "moe_freq"), ((1, 1), (2, 1), (1, 2)), ("torch_dist", "torch")
        )
    ),
)
