"""Formats the results of the benchmark as a Markdown table and as a plot."""

import math
import pathlib
import statistics
import textwrap
from collections.abc import Mapping
from typing import Any

# Colors are the same in all panels. Lines of PyTorch are dashed.
_COLORS = {
    "ours": "#0b4f8a",
    "ours_dense": "#6fb1e0",
    "torch_eager": "#b5301f",
    "torch_compile": "#e8920c",
    "torch_sdpa": "#2f8f4e",
    "torch_reassociated": "#8a6d3b",
}
_OTHER_COLOR = "#7a5ab5"
_COLUMNS = 4


def _digits(value: float) -> str:
    """Formats a number with at least three digits and no exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _grouped(report: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """Groups the results by case."""
    groups = {}
    for result in report["results"]:
        key = (result["name"], tuple(result["size"]), result["mode"])
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def _fastest_torch(group: list[Mapping[str, Any]], clock: str) -> str | None:
    torch = [r for r in group if r["variant"].startswith("torch_") and clock in r]
    return min(torch, key=lambda r: statistics.median(r[clock]), default={}).get("variant")


def _numbers(result: Mapping[str, Any], baseline: Mapping[str, Any], clock: str) -> list[str]:
    """Formats the median, the range, and the median over the turns of the ratio to the baseline."""
    if "note" in result:
        return [result["note"], "", ""]
    seconds = result[clock]
    spread = f"{_digits(1e3 * min(seconds))} to {_digits(1e3 * max(seconds))}"
    ratio = ""
    if clock in baseline:
        ratios = [a / b for a, b in zip(seconds, baseline[clock], strict=True)]
        ratio = f"{statistics.median(ratios):.2f}"
    return [_digits(1e3 * statistics.median(seconds)), spread, ratio]


def _throughput(result: Mapping[str, Any], clock: str) -> str:
    """Formats the number of images or clips per second."""
    if clock not in result:
        return ""
    return _digits(result["batch_size"] / statistics.median(result[clock]))


def table(report: Mapping[str, Any]) -> str:
    """Formats a line about the device and the settings, and a row for each variant of each case.

    The column "÷ BASELINE" is the time of a variant divided by the time of the baseline. The
    baseline is faster where it exceeds 1. The name of the fastest PyTorch variant is bold.
    """
    baseline, clock = report["baseline"], report["clock"]
    networks = report["kind"] == "models"
    sizes = "size" if networks else "N"
    clock_name = {"wall_seconds": "ms", "cpu_seconds": "CPU ms"}[clock]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    head = [report["kind"], sizes, "", "variant"]
    head += [clock_name, "min to max", f"÷ {baseline}", "peak MiB"]
    head += ["examples/s"] if networks else []
    lines = [f"{report['device']}; {report['settings']}; {versions}", ""]
    lines += ["| " + " | ".join(head) + " |", "|---|---|---|---|" + "---:|" * (len(head) - 4)]
    for group in _grouped(report):
        (base,) = [r for r in group if r["variant"] == baseline] or [{}]
        fastest = _fastest_torch(group, clock)
        for i, result in enumerate(group):
            variant = f"**{fastest}**" if result["variant"] == fastest else result["variant"]
            size = "x".join(map(str, result["size"])) if networks else str(result["positions"])
            case = [result["name"], size, result["mode"]] if i == 0 else ["", "", ""]
            peak = f"{result['peak_mib']:.0f}" if "peak_mib" in result else ""
            cells = [*case, variant, *_numbers(result, base, clock), peak]
            if networks:
                cells.append(_throughput(result, clock))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _series(
    report: Mapping[str, Any], name: str, quantity: str
) -> dict[str, list[tuple[int, float]]]:
    """Returns pairs (N, quantity) of one case name for each variant, sorted by N.

    They are the results with gradient if there are any, else those without.
    """
    results = [r for r in report["results"] if r["name"] == name and quantity in r]
    gradient = any(r["backward"] for r in results)
    series = {}
    for r in sorted(results, key=lambda r: r["positions"]):
        if r["backward"] == gradient and "note" not in r:
            value = r[quantity] if quantity == "peak_mib" else 1e3 * statistics.median(r[quantity])
            if value > 0:  # the axis is logarithmic
                series.setdefault(r["variant"], []).append((r["positions"], value))
    return series


def _draw(axis: Any, series: Mapping[str, list[tuple[int, float]]]) -> dict[str, Any]:
    """Plots one panel, and returns the line of each variant."""
    from matplotlib import ticker

    lines = {}
    for variant, points in series.items():
        (lines[variant],) = axis.plot(
            *zip(*points, strict=True),
            color=_COLORS.get(variant, _OTHER_COLOR),
            linestyle="--" if variant.startswith("torch_") else "-",
            marker="o",
            markersize=4,
        )
    axis.set(xscale="log", yscale="log")
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)
    positions = {n for points in series.values() for n, _ in points}
    axis.xaxis.set_major_locator(ticker.FixedLocator(sorted(positions)))
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    low, high = axis.get_ylim()
    steps = (1,) if high > 30 * low else (1, 2, 5)
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=steps))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    return lines


def plot(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Plots time and memory against N, with gradient if that was measured. Needs Matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = report["results"]
    names = list(dict.fromkeys(r["name"] for r in results))
    time = "CPU time, ms" if report["clock"] == "cpu_seconds" else "time, ms"
    quantities = {report["clock"]: time, "peak_mib": "peak memory, MiB"}
    quantities = {q: label for q, label in quantities.items() if any(q in r for r in results)}
    columns = min(_COLUMNS, len(names))
    rows = len(quantities) * math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.0 * columns + 1.0, 2.4 * rows + 1.0), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    lines = {}
    for i, name in enumerate(names):
        band, column = divmod(i, columns)
        for row, (quantity, label) in enumerate(quantities.items(), band * len(quantities)):
            axis = axes[row, column]
            lines |= _draw(axis, _series(report, name, quantity))
            if column == 0:
                axis.set_ylabel(label)
        axes[band * len(quantities), column].set_title(name.replace("_", " "))
        axis.set_xlabel("positions N")
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    figure.align_ylabels()
    mode = [r["mode"] for r in sorted(results, key=lambda r: r["backward"])][-1]
    title = f"{mode}; {report['device']}; {report['settings']}"
    characters = round(13 * figure.get_figwidth())  # that fit into the width
    figure.suptitle(textwrap.fill(title, characters), fontsize=10)
    figure.legend(
        lines.values(), lines, loc="outside lower center", ncols=max(1, len(lines)), frameon=False
    )
    FigureCanvasAgg(figure).print_png(path)
