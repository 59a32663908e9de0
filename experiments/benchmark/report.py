"""The benchmark's results as a Markdown table and as a plot."""

import math
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

# A form's colour is its own in all panels; PyTorch's are dashed.
_COLOURS = {
    "ours": "#0b4f8a",
    "ours_dense": "#6fb1e0",
    "torch_eager": "#b5301f",
    "torch_compile": "#e8920c",
    "torch_sdpa": "#2f8f4e",
    "torch_reassociated": "#2f8f4e",
}
_OTHER_COLOUR = "#7a5ab5"
_COLUMNS = 4


def _digits(value: float) -> str:
    """At least three digits, never an exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _grouped(report: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """The results of each case."""
    groups = {}
    for result in report["results"]:
        key = (result["name"], tuple(result["size"]), result["mode"])
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def _numbers(result: Mapping[str, Any], baseline: Mapping[str, Any], clock: str) -> list[str]:
    """Median, spread and images/s, and the median of the ratios to the baseline, turn by turn."""
    if "note" in result:
        return [result["note"], "", "", ""]
    seconds = result[clock]
    median = statistics.median(seconds)
    spread = f"{_digits(1e3 * min(seconds))} to {_digits(1e3 * max(seconds))}"
    ratio = ""
    if clock in baseline:
        ratios = [a / b for a, b in zip(seconds, baseline[clock], strict=True)]
        ratio = f"{statistics.median(ratios):.2f}"
    return [_digits(1e3 * median), spread, _digits(result["batch_size"] / median), ratio]


def table(report: Mapping[str, Any]) -> str:
    """A line that names the device, and a row for each form of each case.

    The column after the baseline is the time of a form over that of the baseline: above one, the
    baseline is faster.
    """
    baseline, clock = report["baseline"], report["clock"]
    networks = report["kind"] == "models"
    sizes = "size" if networks else "N"
    clock_name = {"wall_seconds": "ms", "cpu_seconds": "CPU ms"}[clock]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    head = [report["kind"], sizes, "", "form", clock_name, "min to max", "images/s"]
    head += [f"÷ {baseline}", "peak MiB"]
    lines = [f"{report['device']}; {report['settings']}; {versions}", ""]
    lines += ["| " + " | ".join(head) + " |", "|---|---|---|---|" + "---:|" * (len(head) - 4)]
    for group in _grouped(report):
        (base,) = [r for r in group if r["form"] == baseline] or [{}]
        for i, result in enumerate(group):
            size = "x".join(map(str, result["size"])) if networks else str(result["positions"])
            case = [result["name"], size, result["mode"]] if i == 0 else ["", "", ""]
            peak = f"{result['peak_mib']:.0f}" if "peak_mib" in result else ""
            cells = [*case, result["form"], *_numbers(result, base, clock), peak]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _series(
    report: Mapping[str, Any], name: str, quantity: str
) -> dict[str, list[tuple[int, float]]]:
    """For each form, (N, quantity) of a name's most demanding mode, in the order of N."""
    results = [r for r in report["results"] if r["name"] == name and quantity in r]
    gradient = any(r["backward"] for r in results)
    series = {}
    for r in sorted(results, key=lambda r: r["positions"]):
        if r["backward"] == gradient and "note" not in r:
            value = r[quantity] if quantity == "peak_mib" else 1e3 * statistics.median(r[quantity])
            series.setdefault(r["form"], []).append((r["positions"], value))
    return series


def plot(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Time and memory against N, with the gradient where it was measured; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    names = list(dict.fromkeys(r["name"] for r in report["results"]))
    columns = min(_COLUMNS, len(names))
    bands = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.0 * columns + 0.6, 4.8 * bands + 0.9), layout="constrained")
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    lines = {}
    for i, name in enumerate(names):
        band, column = divmod(i, columns)
        quantities = {report["clock"]: "time, ms", "peak_mib": "peak memory, MiB"}
        for row, (quantity, label) in enumerate(quantities.items()):
            axis = axes[2 * band + row, column]
            axis.set_visible(True)
            series = _series(report, name, quantity)
            for form, points in series.items():
                (lines[form],) = axis.plot(
                    *zip(*points, strict=True),
                    color=_COLOURS.get(form, _OTHER_COLOUR),
                    linestyle="--" if form.startswith("torch_") else "-",
                    marker="o",
                    markersize=4,
                )
            axis.set_xscale("log")
            axis.set_yscale("log")
            ticks = sorted({n for points in series.values() for n, _ in points})
            axis.xaxis.set_major_locator(FixedLocator(ticks))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:.0f}"))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axis.grid(alpha=0.3)
            if row == 0:
                axis.set_title(name.replace("_", " "))
            else:
                axis.set_xlabel("positions N")
            if column == 0:
                axis.set_ylabel(label)
    figure.suptitle(f"{report['device']}; {report['settings']}", fontsize=10)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=4, frameon=False)
    FigureCanvasAgg(figure).print_png(path)
