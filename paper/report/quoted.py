"""The paper's own numbers, from arXiv 2409.00119v2 (quoted.json). They stand beside ours and are never mixed with them.

quoted_table("glue")                    # table 2 as Markdown lines; rows that nobody reran say so
quoted_average("glue", "road_1")        # ("RoBERTa-base", 85.6), of the smallest model
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

# the paper's names → ours; a method that is missing here is quoted, and cannot be rerun with roadkit
RERUN = {
    "Full FT": "full",
    "LoRA": "lora",
    "DoRA": "dora",
    "OFT w=2": "oft_2",
    "OFT w=16": "oft_16",
    "OFT n=2048": "oft_2",
    "OFT n=256": "oft_16",
    "BOFT": "boft",
    "BitFit": "bitfit",
    "(IA)3": "ia3",
    "Prefix": "prefix",
    "LoReFT": "loreft",
    "RoAd1": "road_1",
    "RoAd1(fc1)": "road_1_fc1",
    "RoAd2": "road_2",
    "RoAd4": "road_4",
    "RoAd1 + LoRA": "road_1+lora",
}
ABSENT = {("glue", "loreft")}  # (experiment, method) that we do not have
OF_LLMS = {"lora": "lora_32", "dora": "dora_32"}
AS_LARGE = {  # experiment → method → our variant that is as large as the paper's there
    "glue": {"lora": "lora_qv"},
    "commonsense": OF_LLMS,
    "arithmetic": OF_LLMS,
    "instruct": OF_LLMS,
    "multimodal": {"lora": "lora_128", "road_1+lora": "road_1+lora_32"},
}
BENCHED = ("efficiency",)  # experiments that take benchmarks, not methods


@functools.cache
def _paper() -> Mapping[str, Any]:
    return json.loads(files("paper").joinpath("report/quoted.json").read_text(encoding="utf-8"))


def quoted_source(experiment: str) -> str:
    """ "arXiv 2409.00119v2, table 2"."""
    return f"{_paper()['source']}, table {_paper()[experiment]['table']}"


def quoted_experiments() -> tuple[str, ...]:
    """The experiments of which the paper has a table."""
    return tuple(name for name in _paper() if name != "source")


def quoted_average(experiment: str, method: str) -> tuple[str, float] | None:
    """The smallest model of the paper's table, and its average with one of our methods; None if the paper has none."""
    rows = _paper()[experiment]["rows"] if experiment in _paper() else []
    found = [row for row in rows if RERUN.get(row["method"]) == method and row["average"] is not None]
    return (found[0]["model"], found[0]["average"]) if found else None


def quoted_table(experiment: str) -> list[str]:
    """The paper's table as Markdown: model, method, trainable percent, scores, average, and our method that reruns it."""
    quoted = _paper()[experiment]
    averaged = any(row["average"] is not None for row in quoted["rows"])
    header = ["model", "method", "trainable, %", *quoted["columns"], *(["average"] if averaged else [])]
    header += [] if experiment in BENCHED else ["`--methods`"]
    lines = [header, [":--", ":--", *["--:"] * (len(header) - 3), "--:" if experiment in BENCHED else ":--"]]
    digits = max(_digits(number) for row in quoted["rows"] for number in row["scores"])
    for row in quoted["rows"]:
        name, large = RERUN.get(row["method"]), AS_LARGE.get(experiment, {})
        rerun = f"`{large.get(name, name)}`" if name and (experiment, name) not in ABSENT else "quoted, not rerun"
        numbers = [*row["scores"], *([row["average"]] if averaged else [])]
        cells = ["–" if number is None else f"{number:.{digits}f}" for number in numbers]
        percent = "–" if row["percent"] is None else f"{row['percent']:g}"
        lines.append([row["model"], row["method"], percent, *cells, *([] if experiment in BENCHED else [rerun])])
    return [f"*quoted from {quoted_source(experiment)}*", "", *(f"| {' | '.join(cells)} |" for cells in lines), ""]


def _digits(number: float | None) -> int:
    return 0 if number is None or number == int(number) else len(str(number).partition(".")[2])
