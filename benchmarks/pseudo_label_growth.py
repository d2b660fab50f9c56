"""How time and memory of the cluster labels grow with N: runs pseudo_labels.py at several N and draws its figures.

    python benchmarks/pseudo_label_growth.py FIGURES.jsonl --boxes 4512 9024 18048 [--plot GROWTH.svg] [-- OPTION ...]
    python benchmarks/pseudo_label_growth.py FIGURES.jsonl --plot GROWTH.svg

Each N runs in a process of its own, whose JSON line is appended to FIGURES.jsonl; what stands there already is not run
again. OPTIONs go to pseudo_labels.py (for example --device cuda). One JSON line tells the exponents of the growth
between neighboring N: 1 where twice the boxes take twice the time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from person_search.io import replacing

PROGRAM = Path(__file__).with_name("pseudo_labels.py")
STAGES = ("search", "distance", "clustering", "criterion")
Figures = dict[str, Any]


def read(path: Path) -> list[Figures]:
    """The figures of a file that this program writes, by rising N."""
    if not path.exists():
        return []
    try:
        return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda figures: figures["n"])
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: {path} does not hold the JSON lines of pseudo_labels.py ({error}); name another file")


def measure(path: Path, boxes: list[int], options: list[str]) -> None:
    """Runs each N that the file does not have yet and appends its line."""
    for count in sorted(set(boxes) - {figures["n"] for figures in read(path)}):
        print(f"N = {count}", file=sys.stderr)
        command = [sys.executable, str(PROGRAM), "--simulate", str(count), *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.returncode)
        with open(path, "a") as file:
            file.write(done.stdout)


def exponents(rows: list[Figures], name: str) -> list[float]:
    """log(growth of a figure) / log(growth of N) between neighboring N."""
    return [
        round(math.log(after[name] / before[name]) / math.log(after["n"] / before["n"]), 2)
        for before, after in itertools.pairwise(rows)
    ]


def draw(rows: list[Figures], path: Path) -> None:
    """Draws seconds by stage and memory over N, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    # The same figures give the same file, and text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    count = [figures["n"] for figures in rows]
    for name in ("seconds", *STAGES):
        time.loglog(count, [figures[name] for figures in rows], marker="o", label="all" if name == "seconds" else name)
    quadratic = [rows[0]["seconds"] * (n / count[0]) ** 2 for n in count]
    time.loglog(count, quadratic, color="0.7", linestyle="--", zorder=0, label="growth with N²")
    time.set(xlabel="N, annotated boxes", ylabel="seconds")
    time.legend(fontsize="small")
    memory.loglog(count, [figures["peak_mb"] for figures in rows], marker="o", color="black", label="peak memory")
    memory.loglog(
        count, [4 * n * n / 2**20 for n in count], color="0.7", linestyle="--", label="one N x N float32 matrix"
    )
    memory.set(xlabel="N, annotated boxes", ylabel="MiB")
    memory.legend(fontsize="small")
    for axes in (time, memory):
        # The usual labels of a logarithmic axis that spans one decade run into each other.
        axes.set_xticks(count, [f"{n:,}" for n in count], rotation=30, ha="right")
        axes.minorticks_off()
    with replacing(path) as temporary:
        kind = path.suffix.lstrip(".")
        figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, metavar="FIGURES.jsonl")
    parser.add_argument("--boxes", type=int, nargs="+", default=[], metavar="N")
    parser.add_argument("--plot", type=Path, metavar="GROWTH.svg", help="or .png")
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser.parse_args(arguments[:cut])
    if args.plot and args.plot.suffix not in (".svg", ".png"):
        parser.error(f"--plot {args.plot}: expected a name that ends in .svg or .png")
    measure(args.figures, args.boxes, arguments[cut + 1 :])
    rows = read(args.figures)
    if not rows:
        parser.error(f"{args.figures} has no figures yet: name some --boxes")
    if args.plot:
        draw(rows, args.plot)
    growth = {name: exponents(rows, name) for name in ("seconds", "cpu_seconds", "peak_mb")}
    print(json.dumps({"n": [figures["n"] for figures in rows], **{f"{k}_exponent": v for k, v in growth.items()}}))


if __name__ == "__main__":
    main()
