"""All policies by kind. A new one is a file here, a line in this table and one in the test suite's.

``Policy`` is the union that settings files are validated against; ``kind`` tells its members apart.
"""

from typing import get_args

from stepvar_patch.policies.controls import (
    LatticePolicy,
    MeanDistancePolicy,
    NormPolicy,
    RandomPolicy,
)
from stepvar_patch.policies.dense import DensePolicy
from stepvar_patch.policies.fastvar import FastVARPolicy
from stepvar_patch.policies.ldpruning import LDPruningPolicy
from stepvar_patch.policies.oracle import OraclePolicy
from stepvar_patch.policies.skipvar import SkipVARPolicy
from stepvar_patch.policies.sparsevar import SparseVARPolicy
from stepvar_patch.policies.stepvar import StepVARPolicy
from stepvar_patch.policies.tome import ToMePolicy

Policy = (
    DensePolicy
    | StepVARPolicy
    | FastVARPolicy
    | SparseVARPolicy
    | SkipVARPolicy
    | LDPruningPolicy
    | ToMePolicy
    | RandomPolicy
    | LatticePolicy
    | NormPolicy
    | MeanDistancePolicy
    | OraclePolicy
)

POLICIES: dict[str, type[Policy]] = {
    policy.__dataclass_fields__["kind"].default: policy for policy in get_args(Policy)
}
"""Settings class by ``kind``."""

__all__ = ["POLICIES", "Policy", *(policy.__name__ for policy in get_args(Policy))]
