"""Where an experiment's rows come from: the folder of `--data`, else roadkit's cache, else a data set of the hub.

    train, dev = read_rows(None, "glue/rte_train", "glue/rte_dev")    # the cache, then nyu-mll/glue
    (prompts,) = read_rows(Path("data"), "instruct/alpaca_eval_805")  # data/instruct/alpaca_eval_805.jsonl

A set of rows has the same name and the same columns wherever it comes from:

| name          | columns                                                                                   |
|---------------|-------------------------------------------------------------------------------------------|
| glue/…        | sentence1, sentence2 (if the task has pairs), label                                       |
| commonsense/… | instruction, input, output, answer; HellaSwag: ctx, endings, label                        |
| math/…        | instruction, input, output, answer; to train on GSM8K: question, answer; MAWPS: equation too |
| instruct/…    | instruction, input, output; alpaca_eval_805: instruction, dataset                         |
| german/…      | instruction, input, output                                                                |
| classify/…    | text, label_name, domain                                                                  |
| multimodal/…  | image, question, answer or answers                                                        |
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from roadkit.errors import RecipeError
from roadkit.files import cache_dir
from roadkit.train.data.tables import SUFFIXES, Cells, Table, read_table


@dataclass(frozen=True)
class HubRows:
    """A split of a data set of the hub, and what makes one of its rows a row of ours.

    source   owner/name[:configuration], as `read_table` takes it
    """

    source: str
    split: str = "train"
    convert: Callable[[Cells], Cells] = dict


def _renamed(columns: dict[str, str]) -> Callable[[Cells], Cells]:
    """`columns`: the hub's name of a column → ours. Other columns stay."""
    return lambda row: {columns.get(name, name): value for name, value in row.items()}


def _solved(row: Cells) -> Cells:
    """GSM8K: the rationale ends with "#### 42"."""
    answer = row["answer"].rpartition("####")[2].strip()
    return {"instruction": row["question"], "input": "", "output": row["answer"], "answer": answer}


def _preferred(row: Cells) -> Cells:
    """UltraFeedback: the answer that was preferred."""
    return {"instruction": row["prompt"], "input": "", "output": row["chosen"][-1]["content"]}


def _right_ending(row: Cells) -> Cells:
    """HellaSwag_de: the right ending. Some rows lack endings; of these the last one is taken."""
    endings = row["endings_de"]
    ending = endings[int(row["label"])] if len(endings) == 4 else endings[-1]
    return {"instruction": row["ctx_de"] if "ctx_de" in row else row["ctx"], "input": "", "output": ending}


GLUE_COLUMNS = {  # task of nyu-mll/glue → the columns that have another name there
    "rte": {},
    "mrpc": {},
    "stsb": {},
    "cola": {"sentence": "sentence1"},
    "sst2": {"sentence": "sentence1"},
    "qnli": {"question": "sentence1", "sentence": "sentence2"},
    "qqp": {"question1": "sentence1", "question2": "sentence2"},
    "mnli": {"premise": "sentence1", "hypothesis": "sentence2"},
}
ULTRAFEEDBACK = HubRows("argilla/ultrafeedback-binarized-preferences-cleaned", convert=_preferred)  # pyreft's source
ON_HUB = {
    f"glue/{task}_{part}": HubRows(f"nyu-mll/glue:{task}", split, _renamed(columns))
    for task, columns in GLUE_COLUMNS.items()
    for part, split in (("train", "train"), ("dev", "validation_matched" if task == "mnli" else "validation"))
} | {
    "glue/sst2_sentences_train": HubRows("SetFit/sst2", convert=_renamed({"text": "sentence1"})),
    "math/gsm8k_official_train": HubRows("openai/gsm8k:main"),
    "math/gsm8k_test": HubRows("openai/gsm8k:main", "test", _solved),
    "instruct/ultrafeedback_1k": ULTRAFEEDBACK,
    "instruct/ultrafeedback": ULTRAFEEDBACK,
    "instruct/alpaca_cleaned": HubRows("yahma/alpaca-cleaned"),
    "german/hellaswag_de": HubRows("LeoLM/HellaSwag_de", convert=_right_ending),
}
OTHER_NAMES = {  # names that files of these rows go by too; hellaswag_sub is a sample of 1,000 rows
    "commonsense/siqa_test": "commonsense/social_i_qa_test",
    "commonsense/hellaswag_test": "commonsense/hellaswag_sub_test",
}
ORIGINS = {  # folder → where its files can be found
    "glue": "nyu-mll/glue on the hub, with columns sentence1, sentence2 and label",
    "commonsense": "AGI-Edgerunners/LLM-Adapters on GitHub (dataset/ and ft-training_set/)",
    "math": "AGI-Edgerunners/LLM-Adapters on GitHub (dataset/ and ft-training_set/) and openai/grade-school-math",
    "instruct": "the hub's tatsu-lab/alpaca_eval (alpaca_eval.json, as alpaca_eval_805) and its sets of instructions",
    "german": "sentences cut in two, as de_wiki_completion_train, or LeoLM/HellaSwag_de on the hub: instruction, output",
    "classify": "clinc/oos-eval on GitHub (data_full.json and domains.json): text, label_name, domain",
    "multimodal": "GQA, ScienceQA, TextVQA and POPE, one JSON Lines file each: image, question, answer or answers",
}


def cache_folder() -> Path:
    """`paper-data` in roadkit's cache: what lies there is found without `--data`, in the layout of a data folder."""
    return cache_dir() / "paper-data"


def find_file(folder: Path | None, name: str) -> Path | None:
    """The file of these rows in `folder`, or in the cache if that is None, with any ending that `read_table` reads."""
    root = cache_folder() if folder is None else folder
    for stem in (name, OTHER_NAMES.get(name, name)):
        for ending in (suffix + packed for suffix in SUFFIXES for packed in ("", ".gz")):
            if (path := root / f"{stem}{ending}").is_file():
                return path
    return None


def check_rows(folder: Path | None, *names: str) -> None:
    """Raises `RecipeError` with every name that has no file, and without a `folder` no data set of the hub either."""
    found = [name for name in names if find_file(folder, name) or (folder is None and name in ON_HUB)]
    if missing := [name for name in names if name not in found]:
        raise _absent(folder, missing)


def read_rows(folder: Path | None, *names: str) -> list[Table]:
    """A table for each name. Raises `RecipeError` with all names that are missing, `--data` and the cache's folder.

    folder   where to look, and nowhere else; None: in the cache, then on the hub
    """
    check_rows(folder, *names)
    paths = {name: find_file(folder, name) for name in names}
    tables = []
    for name, path in paths.items():
        if path is not None:
            tables.append(read_table(str(path)))
            continue
        try:
            table = read_table(ON_HUB[name].source, split=ON_HUB[name].split)
        except RecipeError as error:
            without = [name for name, path in paths.items() if path is None]
            raise _absent(folder, without, f"; the hub failed too: {str(error).splitlines()[0]}") from error
        rows = [ON_HUB[name].convert(row) for row in table.rows]
        tables.append(Table(rows, table.numbers, table.origin))
    return tables


def sample_rows(table: Table, count: int | None, *, seed: int) -> Table:
    """`count` rows drawn by the seed, in file order; all rows if the table has no more, or if `count` is None."""
    if count is None or count >= len(table):
        return table
    return table.take(sorted(random.Random(seed).sample(range(len(table)), count)))


def _absent(folder: Path | None, names: Sequence[str], reason: str = "") -> RecipeError:
    files = ", ".join(f"{name}{SUFFIXES[0]}" for name in names)
    place = f"{cache_folder()}, where files are looked for without --data" if folder is None else str(folder)
    kinds = list(dict.fromkeys(name.partition("/")[0] for name in names))
    origins = "; ".join(f"the rows of {kind} are those of {ORIGINS[kind]}" for kind in kinds)
    return RecipeError(
        f"there is no {files} in {place} (nor with another ending: {', '.join(SUFFIXES[1:])}){reason}; "
        f"--data names the folder that holds {', '.join(kinds)}; {origins}"
    )
