"""What runs that follow per-scale rules share: plans, cache bounds, layer ranges."""

from dataclasses import replace
from typing import Any

from infinity.errors import Mistakes, UserError
from infinity.policy import DenseRun, PolicyRequest, Rows, ScalePlan, ScaleView
from stepvar_patch.cost import ScaleLoad
from stepvar_patch.rules import ScaleRule, Scales, kept_count, resolve


class RuledRun(DenseRun):
    """Rows, guidance and dropped scales as the rules say; tokens are the subclass's business.

    Attributes:
        rules: by scale index from the start, of the scales that have one.
        pruned: executed scales whose rule keeps less than everything.
        last: the last executed scale; it ends the picture and caches nothing.
    """

    def __init__(self, request: PolicyRequest, scales: Scales, *, whole_stack: bool) -> None:
        """Resolves the rules.

        Args:
            scales: rules by scale.
            whole_stack: pruned tokens skip every layer, so that no layer caches them.

        Raises:
            UserError: the rules do not fit the schedule.
        """
        super().__init__(request)
        tokens = request.schedule.tokens_per_scale
        self.rules = resolve(scales, request.schedule)
        self._effective = _carried(self.rules, len(tokens))
        self._check_rows()
        self.last = max(si for si in range(len(tokens)) if self.rule(si).run)
        self.pruned = frozenset(
            si for si, rule in self.rules.items() if rule.run and self.kept(si) < tokens[si]
        )
        self.cached_tokens = tuple(
            0 if si >= self.last or not self.rule(si).run else self.kept(si) if whole_stack else n
            for si, n in enumerate(tokens)
        )

    def _check_rows(self) -> None:
        """Refuses rules about the unconditional half at scales where it no longer runs."""
        request, found = self.request, list[str]()
        for si, rule in sorted(self.rules.items()):
            name = f"scales.{si - len(request.schedule)}"
            guided = request.guided[si] if request.guided else request.guidance_rows == 2
            if rule.rows == "uncond" and not (guided and request.rows_live):
                found.append(
                    f"{name}.rows is uncond, but the unconditional half does not run to the "
                    "end there; it needs guidance on logits (guidance_layers 0) from that scale on"
                )
            dropped = any(self.rules[k].rows == "cond" for k in self.rules if k <= si)
            if rule.guidance_echo and not dropped:
                found.append(
                    f"{name}.guidance_echo is {rule.guidance_echo}, but the unconditional "
                    "rows run there; allowed: 0, or rows cond at that scale or before"
                )
            if rule.guidance not in (None, 1) and not guided:
                found.append(
                    f"{name}.guidance is {rule.guidance}, but no unconditional half runs "
                    "there; allowed: 1 or null, or a guidance_scale other than 1 from there on"
                )
            halved = [k for k in self.rules if k <= si and self.rules[k].rows != "both"]
            if rule.guidance not in (None, 1) and halved:
                first = min(halved) - len(request.schedule)
                found.append(
                    f"{name}.guidance is {rule.guidance}, but only one half of the rows runs "
                    f"there; allowed: 1 or null from scales.{first} on"
                )
        if found:
            raise Mistakes(found)

    @property
    def idle(self) -> bool:
        """Whether nothing is left out or changed, so that pictures are the dense ones."""
        return not self.pruned and all(
            rule.run and rule.rows == "both" and rule.guidance is None
            for rule in self.rules.values()
        )

    def rule(self, si: int) -> ScaleRule:
        """What holds at scale ``si``, whether it has a rule of its own or not."""
        return self._effective.get(si, ScaleRule())

    def kept(self, si: int) -> int:
        """Tokens that the rule of scale ``si`` keeps."""
        return kept_count(self.rule(si).keep_ratio, self.request.schedule.tokens_per_scale[si])

    def load(self, si: int) -> ScaleLoad:
        """What scale ``si`` costs: every layer computes and caches the kept tokens."""
        rule = self.rule(si)
        return ScaleLoad(
            run=rule.run,
            rows=rule.rows,
            kept=self.kept(si),
            layers=range(self.request.layers) if si in self.pruned else None,
            cached=self.kept(si),
        )

    def executed_before(self, si: int) -> int | None:
        """The last executed scale before ``si``, if there is one."""
        return next((s for s in range(si - 1, -1, -1) if self.rule(s).run), None)

    def rows_at(self, si: int, view: ScaleView) -> Rows:
        """Guidance rows that run at scale ``si``."""
        rows = self.rule(si).rows
        return view.rows if rows == "both" else rows

    def plan(self, si: int, rule: ScaleRule | None = None, **changes: Any) -> ScalePlan:
        """The plan of a rule (of scale ``si``'s own by default), with ``changes``."""
        rule = self.rule(si) if rule is None else rule
        return ScalePlan(
            run=rule.run,
            rows=rule.rows,
            guidance=rule.guidance,
            guidance_echo=rule.guidance_echo,
            stop_after=rule.run and si == self.last,
            **changes,
        )


def _carried(rules: dict[int, ScaleRule], scales: int) -> dict[int, ScaleRule]:
    """The rules, where rows that end at a scale which does not run end at the next that does."""
    carried = dict(rules)
    rows: Rows = "both"
    for si in range(scales):
        rule = carried.get(si, ScaleRule())
        if rule.rows != "both":
            rows = rule.rows
        elif rule.run and rows != "both":
            carried[si] = replace(rule, rows=rows)
        if rule.run:
            rows = "both"
    return carried


def layer_range(fractions: tuple[float, float], layers: int) -> range:
    """Layers ``[round(start·L), round(end·L))`` of ``L``: fractions serve every depth.

    Raises:
        UserError: no layer lies in the range.
    """
    start, end = (round(fraction * layers) for fraction in fractions)
    if start >= end:
        raise UserError(
            f"layers is {list(fractions)}, which holds no layer of a {layers}-layer model; "
            "allowed: fractions with start < end, at least one layer apart"
        )
    return range(start, end)
