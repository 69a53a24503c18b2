"""No pruning: every token, less the scales and guidance rows that the rules drop."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from infinity.errors import UserError
from infinity.policy import PolicyRequest, PolicyRun, ScalePlan, ScaleView
from stepvar_patch.policies.ruled import RuledRun
from stepvar_patch.rules import Scales


@dataclass(frozen=True, kw_only=True)
class DensePolicy:
    """Computes every token. Rules may still drop scales and guidance rows.

    Attributes:
        scales: rule per scale; keep_ratio must stay 1.
    """

    replayable: ClassVar[bool] = True
    kind: Literal["dense"] = "dense"
    scales: Scales = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind

    def start(self, request: PolicyRequest) -> PolicyRun:
        """A run for one call.

        Raises:
            UserError: a rule matches no scale or prunes tokens.
        """
        return _DenseRulesRun(request, self)


class _DenseRulesRun(RuledRun):
    def __init__(self, request: PolicyRequest, policy: DensePolicy) -> None:
        super().__init__(request, policy.scales, whole_stack=True)
        for si, rule in self.rules.items():
            if rule.keep_ratio < 1:
                raise UserError(
                    f"dense: the rule of scale {si} has keep_ratio {rule.keep_ratio}; allowed: 1, "
                    "or a kind that prunes tokens"
                )

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        return self.plan(si)
