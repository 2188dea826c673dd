"""`Recipe`: everything one training run depends on, checked before anything is loaded.

    recipe = load_recipe("recipes/completion.yaml", ["learning_rate=3e-3", "lora.r=8"])
    recipe = Recipe(model="smollm2", data="answers.jsonl", output="adapters/json")

Every default stands here and nowhere else. All problems of a file are listed in one `RecipeError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import RecipeError
from ..validation import Checked

Task = Literal["causal", "classification", "regression"]
FormatName = Literal["auto", "prompt_completion", "messages", "alpaca", "sharegpt", "text", "sentences"]
Metric = Literal["loss", "accuracy", "f1", "matthews", "pearson", "spearman"]
METRICS: dict[str, tuple[str, ...]] = {
    "causal": ("loss",),
    "classification": ("loss", "accuracy", "f1", "matthews"),
    "regression": ("loss", "pearson", "spearman"),
}


class LoraOptions(BaseModel):
    """A LoRA around the rotation, z = R(Wx) + (alpha/r)·BAx (the paper's recipe for multimodal models)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Recipe(Checked):
    """One training run. Frozen; unknown keys are refused with the nearest name. Raises `RecipeError`.

    model                 the base model: `smollm2`, `minilm`, a hub id or a folder
    data                  a .jsonl[.gz], .json, .csv, .tsv or .parquet file, or a hub data set (`owner/name[:config]`)
    output                the directory that the adapter is written to
    task                  causal (next token), classification, or regression (one score a row)
    format                how rows are read; `auto` looks at the columns
    columns               your names of a format's columns: {prompt: question}
    system                a message put before every dialogue that does not begin with one
    chat_template         false ignores the tokenizer's
    completion_only       the loss counts answers only, not prompts
    max_length            tokens a row at most; default: what the model can read
    truncate              longer rows are cut; false refuses them
    packing               several rows in one sequence, separated by positions so that they never see each other
    group_by_length       batches of rows of like length, for less padding
    variant, group_size   of the adapter (see `roadkit.rotation`)
    target_modules        the layers to rotate, or modules with layers inside, by name or by its ending (q_proj, layers.3,
                          language_model)
    modules_to_save       trained and saved whole; default: the new head of a classifier or regressor
    lora                  a LoRA around the rotations
    learning_rate         RoAd's are about ten times LoRA's (paper: 1e-3 … 7e-3, linear, 10 % warm-up, no weight decay)
    head_learning_rate    of the modules trained whole, whose weights want less than rotations do; default: the same
    warmup                share of the steps (below 1) or number of steps
    batch_size            rows a step and device; gradient_accumulation multiplies it
    epochs, max_steps     the length of the run: max_steps if it is given, else epochs
    eval_data             held-out rows, a file of their own; or eval_fraction, a share of `data`
    eval_steps            evaluate every so many steps, and at the end; otherwise only at the end
    best                  keep the checkpoint that is best by this metric, not the last one
    save_steps, resume    checkpoint every so many steps in `<output>.run`; resume continues from the last one
    keep_checkpoints      keep every checkpoint, for `roadkit plot trajectory`; else the last two, until the run ends
    bf16                  16-bit base weights and autocast; the adapter stays float32
    """

    error_class = RecipeError
    noun = "key"

    model: str
    data: str
    output: str
    task: Task = "causal"

    split: str = "train"
    format: FormatName = "auto"
    columns: dict[str, str] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()
    num_labels: int | None = Field(default=None, ge=1)
    max_examples: int | None = Field(default=None, ge=1)
    system: str | None = None
    chat_template: bool = True
    completion_only: bool = True
    max_length: int | None = Field(default=None, ge=2)
    truncate: bool = True
    packing: bool = False
    group_by_length: bool = False

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    group_size: int = Field(default=64, ge=2, multiple_of=2)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    modules_to_save: tuple[str, ...] | None = None
    lora: LoraOptions | None = None

    learning_rate: float = Field(default=5e-3, gt=0, allow_inf_nan=False)
    head_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(default=0.1, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    batch_size: int = Field(default=8, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    epochs: float = Field(default=3.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    bf16: bool = False
    gradient_checkpointing: bool = False

    eval_data: str | None = None
    eval_split: str = "validation"
    eval_fraction: float = Field(default=0.0, ge=0, lt=1)
    eval_steps: int | None = Field(default=None, ge=1)
    eval_batch_size: int | None = Field(default=None, ge=1)
    best: Metric | None = None
    save_steps: int | None = Field(default=None, ge=1)
    keep_checkpoints: bool = False
    resume: bool = False
    tensorboard: bool = False

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if contradictions := self._contradictions():
            raise RecipeError("; ".join(contradictions))

    @field_validator("target_modules", "modules_to_save", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all-linear" else value

    @property
    def run_dir(self) -> Path:
        """Checkpoints and TensorBoard files of this run, beside the adapter."""
        return Path(f"{self.output.rstrip('/')}.run")

    @property
    def has_eval(self) -> bool:
        return self.eval_data is not None or self.eval_fraction > 0

    def _contradictions(self) -> list[str]:
        """Problems that no single field shows."""
        saves = self.save_steps or self.eval_steps
        causal = self.task == "causal"
        checks = {
            "eval_data and eval_fraction are two sources of held-out rows; give one": (
                self.eval_data is not None and self.eval_fraction > 0
            ),
            "eval_steps needs eval_data or eval_fraction": self.eval_steps is not None and not self.has_eval,
            "best needs eval_steps": self.best is not None and self.eval_steps is None,
            f"save_steps {saves} must be a multiple of eval_steps {self.eval_steps} for `best` to choose among them": (
                self.best is not None and bool(self.eval_steps) and saves is not None and saves % self.eval_steps != 0
            ),
            f"best: {self.best} does not exist for {self.task}; use one of {', '.join(METRICS[self.task])}": (
                self.best is not None and self.best not in METRICS[self.task]
            ),
            "packing joins rows of text: it needs task causal": self.packing and not causal,
            "packing already fills every sequence: group_by_length has nothing to do": (
                self.packing and self.group_by_length
            ),
            "packing needs max_length, the length of a packed sequence": self.packing and self.max_length is None,
            f"format {self.format} has no label: it needs task causal": (
                not causal and self.format not in ("auto", "sentences", "text")
            ),
            "format sentences has no answer to learn: it needs task classification or regression": (
                causal and self.format == "sentences"
            ),
            "labels and num_labels belong to task classification": (
                self.task != "classification" and bool(self.labels or self.num_labels)
            ),
            f"num_labels is {self.num_labels}, but {len(self.labels)} labels are named": (
                bool(self.labels) and self.num_labels is not None and self.num_labels != len(self.labels)
            ),
            "target_modules is empty": self.target_modules == (),
            "head_learning_rate needs a head: task classification or regression, or modules_to_save": (
                self.head_learning_rate is not None and causal and not self.modules_to_save
            ),
            f"warmup {self.warmup} is neither a share of the steps (below 1) nor a number of steps": (
                self.warmup > 1 and not self.warmup.is_integer()
            ),
        }
        return [problem for problem, found in checks.items() if found]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a YAML recipe, then apply `key=value` overrides (`lora.r=8`; values are YAML).

    Files that do not exist from here are looked for beside the recipe. Raises `RecipeError` listing every problem.
    """
    path = Path(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        kind = "nothing" if values is None else f"a {type(values).__name__}"
        raise RecipeError(f"{path} holds {kind}, not a mapping of keys to values")
    for override in overrides:
        _apply(values, override)
    for key in ("data", "eval_data"):
        beside = path.parent / str(values.get(key))
        if isinstance(values.get(key), str) and not Path(values[key]).exists() and beside.is_file():
            values[key] = str(beside)
    try:
        return Recipe(**{str(key): value for key, value in values.items()})
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, fields at their defaults left out; `load_recipe` reads it back."""
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{override!r} is no override: write key=value, for example learning_rate=3e-3")
    *parents, leaf = key.strip().split(".")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: the value cannot be read: {' '.join(str(error).split())}") from error
    for i, parent in enumerate(parents):
        inner = values.get(parent)
        if inner is not None and not isinstance(inner, dict):
            raise RecipeError(f"{override!r}: {'.'.join(parents[: i + 1])} is {inner!r}, it has no keys of its own")
        values[parent] = dict(inner or {})
        values = values[parent]
    values[leaf] = value


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice; PyYAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {twice!r} is written twice (line {node.start_mark.line + 1} and below)")
        return super().construct_mapping(node, deep)
