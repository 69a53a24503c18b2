"""The processes that share one run, as their launcher tells each of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from infinity.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those of a run.

    Attributes:
        rank: 0 ≤ rank < world; rank 0 talks for all.
        world: how many processes there are.
        local: number of this process on its machine.
        run: the same text for all processes of one launch.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    run: str = ""

    @property
    def alone(self) -> bool:
        return self.world == 1


def ranks_from_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """What ``torchrun``, ``accelerate launch`` or a launch script says; one process if nothing.

    Args:
        environment: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, and what names the launch:
            ``MASTER_ADDR``, ``MASTER_PORT``, ``TORCHELASTIC_RUN_ID``.

    Raises:
        UserError: numbers that do not fit together.
    """
    if "WORLD_SIZE" not in environment and "RANK" not in environment:
        return Ranks()
    values: dict[str, int] = {}
    for name, default in (("RANK", None), ("WORLD_SIZE", None), ("LOCAL_RANK", "0")):
        text = environment.get(name, default)
        if text is None or not text.isdecimal():
            raise UserError(
                f"environment: {name} is {text!r}, but a launcher sets RANK and WORLD_SIZE to "
                "whole numbers; use torchrun or accelerate launch, or unset both"
            )
        values[name] = int(text)
    rank, world = values["RANK"], values["WORLD_SIZE"]
    if rank >= world:
        raise UserError(f"environment: RANK is {rank}, allowed: below WORLD_SIZE, which is {world}")
    if world == 1:
        return Ranks(local=values["LOCAL_RANK"])
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")
    run = " ".join(environment.get(name, "-") for name in names)
    return Ranks(rank=rank, world=world, local=values["LOCAL_RANK"], run=run)
