"""A benchmark's file as a Markdown table."""

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN_KERNELS = 15
"""In the printed table; the file has more."""


def markdown(record: Mapping[str, Any]) -> str:
    """The table, what it was measured on, and why arms are missing.

    Args:
        record: what the JSON file holds.
    """
    rows = [row for row in record["rows"] if row.get("back_to_back")]
    lines = [f"`{record['command']}`: {machine(record['environment'])}", ""]
    if record["note"]:
        lines += [f"**{record['note'][0].upper()}{record['note'][1:]}.**", ""]
    if rows:
        lines += table([_cells(row) for row in rows])
    for row in record["rows"]:
        if row["kernels"]:
            lines += ["", *_kernels(row)]
    failed = [row for row in record["rows"] if row["error"]]
    if failed:
        lines += ["", "Arms that do not run:", ""]
        lines += [f"- {row['arm']}, batch {row['batch_size']}: {row['error']}" for row in failed]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Lines of a Markdown table; the rows map column to text, all in the same order."""
    lines = [list(rows[0]), ["---", *["---:"] * (len(rows[0]) - 1)]]
    lines += [[text.replace("|", r"\|") for text in row.values()] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def machine(environment: Mapping[str, Any]) -> str:
    """What a file was measured on, in words."""
    device = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} threads"
    changed = " with changes" if environment["dirty"] else ""
    commit = f", commit {environment['commit'][:9]}{changed}" if environment["commit"] else ""
    return f"{device}, torch {environment['torch']}{commit}, {environment['time']}"


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Column → text."""
    timed, paced, first = row["back_to_back"], row["paced"], row["first_image"] or {}
    batch, flops = row["batch_size"], (row["flops"] or {}).get("per_image")

    def per_image(*stages: str) -> str:
        return _number(sum(timed["stages_ms"].get(name, 0.0) for name in stages) / batch)

    return {
        "arm": row["arm"],
        "batch": str(batch),
        "ms/image": _number(timed["per_image_ms"]),
        "min … max": f"{_number(timed['min_ms'] / batch)} … {_number(timed['max_ms'] / batch)}",
        "n": str(timed["n"]),
        "paced": _number(paced and paced["per_image_ms"]),
        "speed-up": "–" if timed["speedup"] is None else f"{timed['speedup']:.2f}×",
        "text": per_image("text"),
        "blocks": per_image("blocks"),
        "select+restore": per_image("select", "pack", "restore"),
        "head+sampling": per_image("head", "sampling", "next_input"),
        "decode": per_image("decode"),
        "TFLOP": "–" if flops is None else f"{flops / 1e12:.3g}",
        "peak MiB": _number(_peak_mib(row), digits=0),
        "first image s": "failed" if "error" in first else _number(first.get("first_ms"), 1e-3, 2),
        "ahead after": _ahead_after(first),
    }


def _kernels(row: Mapping[str, Any]) -> list[str]:
    found = row["kernels"]
    title = (
        f"Kernels of one draw, {row['arm']}, batch {row['batch_size']}: {found['launches']} "
        f"launches, busy {found['busy_ms']:.1f} ms"
    )
    shown = [
        {"kernel": f"`{k['name'][:90]}`", "ms": f"{k['ms']:.2f}", "launches": str(k["launches"])}
        for k in found["top"][:SHOWN_KERNELS]
    ]
    return [title, "", *table(shown)]


def _peak_mib(row: Mapping[str, Any]) -> float | None:
    """Of the fresh process, if there was one: nothing of other arms is in it."""
    alone: float | None = (row["first_image"] or {}).get("peak_over_weights_mib")
    return row["peak_over_weights_mib"] if alone is None else alone


def _ahead_after(first: Mapping[str, Any]) -> str:
    if "break_even_images" not in first:
        return "–"
    images = first["break_even_images"]
    return "never" if images is None else f"{images} image{'s' if images > 1 else ''}"


def _number(value: float | None, factor: float = 1.0, digits: int = 1) -> str:
    return "–" if value is None else f"{value * factor:.{digits}f}"
