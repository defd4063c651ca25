"""Who started this process, and how many others: torchrun, a Slurm step, or a person one alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32


@dataclass(frozen=True)
class Place:
    """A process among those that were started together, and where they meet."""

    rank: int = 0
    number: int = 1
    local: int = 0  # among those of its node
    address: str = ""
    port: int = 0


def find(environment: Mapping[str, str]) -> Place:
    """The place that torchrun, or else a Slurm step of several tasks, gave this process.

    An allocation of several tasks is none: its stages are started by steps of one task each.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        if int(environment["WORLD_SIZE"]) == 1:
            return Place()
        return Place(int(environment["RANK"]), int(environment["WORLD_SIZE"]),
                     int(environment.get("LOCAL_RANK") or 0), environment["MASTER_ADDR"],
                     int(environment["MASTER_PORT"]))
    number = int(environment.get("SLURM_STEP_NUM_TASKS") or 1)
    if number == 1 or "SLURM_PROCID" not in environment:
        return Place()
    step = f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
    return Place(int(environment["SLURM_PROCID"]), number,
                 int(environment.get("SLURM_LOCALID") or 0),
                 environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
                 # below what systems give out by themselves; two steps of a node seldom have one
                 int(environment.get("MASTER_PORT") or 20000 + crc32(step.encode()) % 10000))


def first_host(nodes: str) -> str:
    """The first of a list as Slurm writes it: n[007-9,12]-ib,m1 -> n007-ib."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0]) if first else nodes
