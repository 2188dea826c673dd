"""One training run from recipe to adapter.

result = run(Recipe(model="smollm2", data="answers.jsonl", output="adapters/json"))
result.adapter, result.metrics["loss"], result.seconds
"""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import models
from ..errors import ModelError, RecipeError
from .data import Table, read_table, split_table
from .formats import Layout, detect
from .labels import find_classes
from .progress import Progress
from .recipe import Recipe
from .tokens import Encoded, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("roadkit.train")


@dataclass(frozen=True)
class TrainResult:
    """What a run made. `adapter` is the directory written (with LoRA: road/ and lora/ in it).

    metrics     loss (mean of the last steps), train_loss (mean of the run), and with held-out rows eval_loss, …
    steps       of the optimiser; seconds of this call, loading included
    tokens      seen by this call, padding not counted
    trainable   parameters; truncated, dropped: rows (see `Encoded`)
    """

    adapter: Path
    metrics: Mapping[str, float]
    steps: int
    seconds: float
    examples: int = 0
    tokens: int = 0
    trainable: int = 0
    truncated: int = 0
    dropped: int = 0
    resumed_from: int | None = None
    classes: Sequence[str] | int | None = field(default=None)


@dataclass(frozen=True)
class Prepared:
    """Everything known before the model is needed: the data read, checked and tokenised."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    columns: list[str]
    train: Encoded
    held_out: Encoded | None
    classes: list[str] | int | None
    max_length: int

    @property
    def num_labels(self) -> int:
        """Outputs of the head: 1 for regression."""
        return 1 if self.classes is None else self.classes if isinstance(self.classes, int) else len(self.classes)


def prepare(
    recipe: Recipe, *, model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Prepared:
    """Read, check and tokenise a recipe's data. Needs the tokenizer and the configuration, not the weights."""
    table = read_table(recipe.data, split=recipe.split, limit=recipe.max_examples)
    held: Table | None = None
    if recipe.eval_data is not None:
        held = read_table(recipe.eval_data, split=recipe.eval_split, limit=recipe.max_examples)
    elif recipe.eval_fraction:
        table, held = split_table(table, fraction=recipe.eval_fraction, seed=recipe.seed)
    tokenizer = tokenizer or models.load_tokenizer(recipe.model)
    max_length = _max_length(recipe, model.config if model is not None else _load_config(recipe.model), tokenizer)
    layout = detect(table, recipe, chat=bool(tokenizer.chat_template))
    classes = find_classes(table, layout.columns["label"], recipe) if layout.name == "sentences" else None
    options = {"max_length": max_length, "labels": classes}
    train = encode(table, layout, tokenizer, recipe, **options)
    held_out = encode(held, layout, tokenizer, recipe, **options) if held is not None else None
    for name, encoded in (("training", train), ("held-out", held_out)):
        if encoded is not None and encoded.truncated:
            log.warning("%d of %d %s rows were cut to %d tokens", encoded.truncated, len(encoded), name, max_length)
        if encoded is not None and encoded.dropped:
            log.warning("%d %s rows had no answer left to learn and are left out", encoded.dropped, name)
        if encoded is not None and encoded.unmarked:
            log.warning("%d answers bear no loss: the chat template rewrites earlier turns", encoded.unmarked)
    return Prepared(recipe, tokenizer, layout, table.columns, train, held_out, classes, max_length)


def load_base(prepared: Prepared) -> PreTrainedModel:
    """The base model with the head that the task needs; a new head depends on the seed alone."""
    from transformers import set_seed

    recipe = prepared.recipe
    dtype = "bfloat16" if recipe.bf16 else "float32"
    set_seed(recipe.seed)
    if recipe.task == "causal":
        return models.load_causal(recipe.model, dtype=dtype)
    return models.load_encoder(recipe.model, num_labels=prepared.num_labels, dtype=dtype)


def run(
    recipe: Recipe,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train one adapter and write it to `recipe.output`, with a model card.

    model, tokenizer    already loaded (both or none); afterwards the model is as it was before
    progress            called after every step and evaluation

    Raises `RecipeError` for a recipe or data that cannot be used, a loss that is no number, and a checkpoint that
    belongs to something else; `ModelError` for a base model that cannot be loaded.
    """
    start = time.perf_counter()
    if (model is None) != (tokenizer is None):
        raise RecipeError("give model and tokenizer together, or neither")
    if recipe.tensorboard and not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        raise RecipeError("tensorboard: true needs the package: pip install tensorboard")
    prepared = prepare(recipe, model=model, tokenizer=tokenizer)
    use_cpu = _use_cpu(model)
    base_model = model if model is not None else load_base(prepared)
    check_head(prepared, base_model)

    from .artifact import check_output
    from .tuned import borrowed

    check_output(recipe.output, recipe)

    with borrowed(base_model), padding(prepared.tokenizer, base_model):
        return _train(prepared, base_model, use_cpu=use_cpu, progress=progress, start=start)


def _train(
    prepared: Prepared, base_model: PreTrainedModel, *, use_cpu: bool, progress: Progress | None, start: float
) -> TrainResult:
    from transformers import set_seed

    from ..adapter import Base
    from .artifact import CARD, FIGURES
    from .callbacks import Run, held_out_metrics
    from .card import model_card
    from .checkpoints import clear, data_fingerprint, identity, weights_fingerprint
    from .trainer import build_trainer, check_isolated
    from .tuned import tune

    recipe = prepared.recipe
    base = Base(models.canonical_name(recipe.model), models.config_fingerprint(base_model.config))
    same = identity(
        recipe,
        base=base.name,
        fingerprint=base.fingerprint,
        weights=weights_fingerprint(base_model),
        data=data_fingerprint(prepared.train.examples),
    )
    checkpoint = _checkpoint(recipe, same)
    set_seed(recipe.seed)
    tuned = tune(base_model, recipe)
    trainable = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    session = Run(recipe, base, same, progress)
    trainer = build_trainer(
        tuned,
        session,
        tokenizer=prepared.tokenizer,
        train=prepared.train.examples,
        held_out=prepared.held_out.examples if prepared.held_out else None,
        use_cpu=use_cpu,
    )
    if recipe.packing:
        check_isolated(trainer, prepared.train.examples)
    outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-10:]
    metrics = {"train_loss": outcome.training_loss}
    if losses:
        metrics["loss"] = sum(losses) / len(losses)
    if prepared.held_out is not None:
        metrics |= {f"eval_{name}": value for name, value in held_out_metrics(trainer.evaluate()).items()}
    result = TrainResult(
        adapter=Path(recipe.output),
        metrics=metrics,
        steps=outcome.global_step,
        seconds=round(time.perf_counter() - start, 3),
        examples=len(prepared.train),
        tokens=session.tokens,
        trainable=trainable,
        truncated=prepared.train.truncated,
        dropped=prepared.train.dropped,
        resumed_from=int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
        classes=prepared.classes,
    )
    session.extra_files = {
        CARD: model_card(result, recipe, base).encode(),
        FIGURES: json.dumps(figures(result), indent=2, ensure_ascii=False).encode(),
    }
    trainer.save_model(recipe.output)
    if trainer.is_world_process_zero() and not recipe.keep_checkpoints:
        clear(recipe.run_dir)
    return result


def figures(result: TrainResult) -> dict[str, Any]:
    """A result as JSON values."""
    return vars(result) | {"adapter": str(result.adapter), "metrics": dict(result.metrics)}


def check_head(prepared: Prepared, model: PreTrainedModel) -> None:
    """Has a loaded classifier as many outputs as there are classes?"""
    outputs = getattr(model.config, "num_labels", None)
    if prepared.recipe.task != "causal" and outputs != prepared.num_labels:
        raise RecipeError(
            f"the model has {outputs} outputs, the data {prepared.num_labels} classes: "
            f"load it with num_labels={prepared.num_labels}"
        )


def _checkpoint(recipe: Recipe, same: Mapping[str, Any]) -> Path | None:
    """Where to go on from, checked; without `resume`, what an earlier run left is cleared away."""
    from .checkpoints import check_same, clear, last_complete

    found = last_complete(recipe.run_dir)
    if recipe.resume:
        if found is None:
            log.warning("no complete checkpoint in %s: the run starts at the beginning", recipe.run_dir)
        else:
            check_same(found, same)
        return found
    if found is not None:
        log.warning("starting over: %s of an unfinished run is deleted (resume: true would continue it)", found)
    clear(recipe.run_dir)
    return None


def _load_config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(models.resolve(name))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name} cannot be loaded: {error}") from error


def _max_length(recipe: Recipe, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens a row at most: the recipe's, within what the model has positions for."""
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx")]
    limits.append(tokenizer.model_max_length)  # "none" is written as a huge number
    context = min((limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**8), default=10**8)
    if recipe.max_length is not None and recipe.max_length > context:
        raise RecipeError(f"max_length {recipe.max_length} exceeds the {context} tokens that {recipe.model} can read")
    return recipe.max_length or context


def _use_cpu(model: PreTrainedModel | None) -> bool:
    """A model that was handed in stays on its device; others go where there is a GPU."""
    import torch

    return model.device.type == "cpu" if model is not None else not torch.cuda.is_available()


@contextmanager
def padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Iterator[None]:
    """A padding token for the length of a run, the end token where there is none of its own."""
    before = tokenizer.pad_token
    if before is None:
        if tokenizer.eos_token is None:
            raise RecipeError("the tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    try:
        yield
    finally:
        tokenizer.pad_token = before
