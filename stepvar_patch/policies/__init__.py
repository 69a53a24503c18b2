"""All policies by kind. A new one is a file here, a line in this table and one in the test suite's.

``Policy`` is the union that settings files are validated against; ``kind`` tells its members apart.
"""

from typing import get_args

from stepvar_patch.policies.dense import DensePolicy
from stepvar_patch.policies.stepvar import StepVARPolicy

Policy = DensePolicy | StepVARPolicy

POLICIES: dict[str, type[Policy]] = {
    policy.__dataclass_fields__["kind"].default: policy for policy in get_args(Policy)
}
"""Settings class by ``kind``."""

__all__ = ["POLICIES", "DensePolicy", "Policy", "StepVARPolicy"]
