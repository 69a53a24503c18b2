"""Every policy with its options, for the suite that all of them go through.

A new policy adds one line to ``CASES``.
"""

from dataclasses import dataclass, replace
from typing import Any

from stepvar_patch.policies import (
    DensePolicy,
    FastVARPolicy,
    LatticePolicy,
    LDPruningPolicy,
    MeanDistancePolicy,
    NormPolicy,
    RandomPolicy,
    SkipVARPolicy,
    SparseVARPolicy,
    StepVARPolicy,
    ToMePolicy,
)
from stepvar_patch.rules import ScaleRule

EVERYTHING: dict[str | int, ScaleRule] = {
    "-2": ScaleRule(keep_ratio=0.9999),
    "-1": ScaleRule(keep_ratio=0.9999),
}
"""So little is dropped that every token is kept, but through the packed path."""


@dataclass(frozen=True)
class Case:
    """A policy, the same policy keeping everything, and what its method excludes.

    Attributes:
        any_order: the order of indices in its keep sets cannot matter.
    """

    policy: Any
    complete: Any
    any_order: bool = False


def selecting(policy: Any) -> Case:
    return Case(policy, replace(policy, scales=EVERYTHING), any_order=True)


ROWS: dict[str | int, ScaleRule] = {
    "-3": ScaleRule(keep_ratio=0.5),
    "-2": ScaleRule(keep_ratio=0.4, rows="cond"),
    "-1": ScaleRule(run=False),
}

CASES: dict[str, Case] = {
    "dense": Case(DensePolicy(scales={"-1": ScaleRule(run=False)}), DensePolicy()),
    "stepvar": selecting(StepVARPolicy()),
    "stepvar-change": selecting(StepVARPolicy(restore="nearest_change", min_coverage=3)),
    "stepvar-split": selecting(
        StepVARPolicy(combine="split", components=2, start_vector="previous")
    ),
    "stepvar-rows": selecting(StepVARPolicy(scales=ROWS, normalise="rank")),
    "stepvar-codes": selecting(StepVARPolicy(restore="code_copy", texture_filter="haar")),
    "stepvar-zero-codes": selecting(StepVARPolicy(restore="code_zero", features="unit")),
    "stepvar-gradient": selecting(
        StepVARPolicy(structure="gradient", restore="code_zero", min_coverage=3)
    ),
    "stepvar-propagate": selecting(StepVARPolicy(kv_write="propagate", normalise="raw")),
    "stepvar-late-layers": selecting(StepVARPolicy(layers=(0.4, 1.0), smooth=True)),
    "stepvar-middle-propagate": selecting(
        StepVARPolicy(layers=(0.4, 0.7), kv_write="propagate", features="unit")
    ),
    "stepvar-layer": selecting(StepVARPolicy(scope="layer", scored_rows="own")),
    "stepvar-branch": selecting(
        StepVARPolicy(scope="branch", scored_rows="mean", restore="zero_change")
    ),
    "late-layer": Case(
        StepVARPolicy(scored_layer=1.0, restore="code_zero"),
        StepVARPolicy(scored_layer=1.0, restore="code_zero", scales=EVERYTHING),
    ),
    "late-layer-middle": Case(
        StepVARPolicy(scored_layer=0.5, smooth=True, layers=(0.4, 1.0), scales=ROWS),
        StepVARPolicy(scored_layer=0.5, smooth=True, layers=(0.4, 1.0), scales=EVERYTHING),
    ),
    "late-layer-echo": Case(
        StepVARPolicy(
            scored_layer=1.0,
            restore="code_zero",
            scales={
                "-3": ScaleRule(rows="cond", guidance_echo=0.5),
                "-1": ScaleRule(keep_ratio=0.4, guidance_echo=0.5),
            },
        ),
        StepVARPolicy(scored_layer=1.0, restore="code_zero", scales=EVERYTHING),
    ),
    "random": selecting(RandomPolicy()),
    "lattice": selecting(LatticePolicy(restore="nearest_change")),
    "norm": selecting(NormPolicy()),
    "mean-distance": selecting(MeanDistancePolicy()),
    "fastvar": Case(FastVARPolicy(), FastVARPolicy(scales=EVERYTHING), any_order=True),
    "fastvar-every-scale": Case(
        FastVARPolicy(scales=ROWS, layers=(0, 1)),
        FastVARPolicy(scales=EVERYTHING, layers=(0, 1)),
        any_order=True,
    ),
    "sparsevar": Case(SparseVARPolicy(), SparseVARPolicy(scales=EVERYTHING)),
    "sparsevar-zero-codes": Case(
        SparseVARPolicy(restore="code_zero"),
        SparseVARPolicy(scales=EVERYTHING, restore="code_zero"),
    ),
    "sparsevar-rows": Case(
        SparseVARPolicy(scales=ROWS, anchor_stride=0, layer=0.0),
        SparseVARPolicy(scales=EVERYTHING, anchor_stride=0),
    ),
    "skipvar": Case(SkipVARPolicy(), SkipVARPolicy(scales={})),
    "ldpruning": Case(
        LDPruningPolicy(branch_stop=0.0), LDPruningPolicy(branch_stop=0.0, energy_share=1.0)
    ),
    "ldpruning-capped": Case(
        LDPruningPolicy(branch_stop=0.0, scales=ROWS, base_gain=0.5),
        LDPruningPolicy(branch_stop=0.0, scales={}),
    ),
    "tome": Case(ToMePolicy(), ToMePolicy(scales=EVERYTHING)),
    "tome-every-branch": Case(
        ToMePolicy(scales=ROWS, branches=("self_attention", "cross_attention", "ffn")),
        ToMePolicy(scales=EVERYTHING, branches=("ffn",), layers=(0.4, 1)),
    ),
}


FIRST = [n for n, c in CASES.items() if n.replace("-", "_") == c.policy.kind]
"""One case per kind; the others vary its options and need no full matrix."""

PICTURE_DECIDES = ("ldpruning", "ldpruning-capped")
"""Cases whose budget is not known beforehand."""

OTHERS = [name for name in CASES if name not in FIRST]
