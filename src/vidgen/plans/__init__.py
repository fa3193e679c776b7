"""Frame plans: which frames, in which calls, given which others.

Plain data without tensors, so that a plan can be drawn, counted, stored and tested by itself.
``plan`` holds the data and its queries, ``ready`` the plans that publications use.
"""

from __future__ import annotations

from vidgen.plans.call import Call, Level, Slot
from vidgen.plans.plan import Plan
from vidgen.plans.ready import (
    CascadeLevel,
    all_at_once,
    autoregressive,
    cascade,
    chunks,
    keyframes,
    rooted,
    tree,
)

__all__ = [
    "Call",
    "CascadeLevel",
    "Level",
    "Plan",
    "Slot",
    "all_at_once",
    "autoregressive",
    "cascade",
    "chunks",
    "keyframes",
    "rooted",
    "tree",
]
