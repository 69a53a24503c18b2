"""An attention benchmark's file as Markdown."""

from collections.abc import Mapping
from typing import Any

from stepvar_patch.experiments.bench.report import machine, table


def markdown(record: Mapping[str, Any]) -> str:
    """One line per case and backend that served it, and why the others did not.

    Args:
        record: what the JSON file holds.
    """
    rows: list[dict[str, str]] = []
    missing: dict[tuple[str, str], list[str]] = {}
    for case in record["cases"]:
        fastest = min((b["median_ms"] for b in case["backends"] if b["median_ms"]), default=None)
        for found in case["backends"]:
            if found["median_ms"] is None:
                missing.setdefault((found["backend"], found["reason"]), []).append(_named(case))
            else:
                rows.append(_cells(case, found, fastest))
    lines = [f"`{record['command']}`: {machine(record['environment'])}", ""]
    lines += table(rows) if rows else []
    if missing:
        lines += ["", "Not used:", ""]
        for (backend, reason), where in missing.items():
            everywhere = len(where) == len(record["cases"])
            lines.append(f"- {backend}{'' if everywhere else f' ({_some(where)})'}: {reason}")
    return "\n".join(lines) + "\n"


def _cells(
    case: Mapping[str, Any], found: Mapping[str, Any], fastest: float | None
) -> dict[str, str]:
    mark = " (fastest)" if found["median_ms"] == fastest else ""
    return {
        "case": _named(case),
        "queries": _counts(case["queries"]),
        "keys": _counts(case["keys"]),
        "backend": found["backend"] + mark,
        "ms": f"{found['median_ms']:.4g}",
        "min … max": f"{found['min_ms']:.4g} … {found['max_ms']:.4g}",
        "TFLOP/s": f"{found['tflops_per_s']:.3g}",
        "relative error": f"{found['relative_error']:.1e}",
        "timed in": found["timed_in"],
    }


def _named(case: Mapping[str, Any]) -> str:
    return f"scale {case['scale']} {case['kind']}"


def _counts(lengths: list[int]) -> str:
    """Rows × length, or the two lengths of ragged rows."""
    different = sorted(set(lengths), reverse=True)
    return f"{len(lengths)} × {' / '.join(map(str, different))}"


def _some(where: list[str]) -> str:
    return f"{where[0]} and {len(where) - 1} more" if len(where) > 1 else where[0]
