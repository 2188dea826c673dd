"""The merging study: adapters of four tasks made into one, and how much of each task's score survives.

    run_merging(MergingSettings(), Path("results/merging"), data=None)

A task is a domain of clinc150 with fifteen intents. The encoder's mean-pooled sentence vector is compared with frozen vectors
of the intents' names, so no task has a head, which could not be merged. RoAd adapters are merged by product and by
geometric mean, LoRAs (r = 8, trained on the same rows for as many steps) by PEFT's linear, TIES and DARE.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from roadkit import models
from roadkit.adapter import Adapter
from roadkit.algebra import mean
from roadkit.errors import RecipeError
from roadkit.modules import attached, linear_layers
from roadkit.peft_tuner import disable_peft, enable_peft

from ..data import read_rows
from ..ledger import Ledger
from .jobs import cpu_seconds, log

DOMAINS = ("banking", "travel", "kitchen_and_dining", "work")
Rows = list[tuple[str, int]]  # text, intent
TEMPERATURE = 0.05


@dataclass(frozen=True)
class MergingSettings:
    """What both kinds of adapters share. Each has its usual learning rate; RoAd's is ten times LoRA's."""

    model: str = "minilm"
    domains: tuple[str, ...] = DOMAINS
    rows: int = 300
    held_out: int = 225
    epochs: int = 3
    batch_size: int = 32
    road_learning_rate: float = 5e-3
    lora_learning_rate: float = 5e-4
    rank: int = 8


@dataclass(frozen=True)
class Domain:
    """One task: the names of its intents, and rows to train on and to score."""

    labels: Sequence[str]
    train: Rows
    test: Rows


def run_merging(
    settings: MergingSettings,
    folder: Path,
    *,
    data: Path | None,
    seed: int = 0,
    progress: Callable[[str], None] = log.info,
) -> Ledger:
    """Train and merge both kinds of adapters, if the ledger lacks them; rows go to `folder`/ledger.jsonl.

    data   the folder of `read_rows`
    """
    ledger = Ledger(folder / "ledger.jsonl")
    for kind in ("road", "lora"):
        setup = {"experiment": "merging", **dataclasses.asdict(settings), "kind": kind}
        setup["domains"] = list(settings.domains)
        if ledger.find(setup, seed=seed) is not None:
            continue
        start = cpu_seconds()
        metrics = _Study(settings, data, seed, progress).measure(kind)
        ledger.append(setup, seed=seed, metrics=metrics, seconds=cpu_seconds() - start)
    return ledger


class _Study:
    """The domains, the tokenizer and the frozen vectors of the intents' names."""

    def __init__(self, settings: MergingSettings, data: Path | None, seed: int, progress: Callable[[str], None]):
        self.settings, self.seed, self.progress = settings, seed, progress
        self.domains = _load_domains(settings, data, seed)
        self.tokenizer = models.load_tokenizer(settings.model)
        base = self._base()
        with torch.no_grad():
            self.names = {name: self._embed(base, list(domain.labels)) for name, domain in self.domains.items()}

    def measure(self, kind: str) -> dict[str, Any]:
        """{"accuracy": {way of merging: {domain: share right}}}; "base" is without an adapter, "own" with the domain's own."""
        base = self._base()
        accuracy = {"base": {name: self._accuracy(base, name) for name in self.domains}, "own": {}}
        with tempfile.TemporaryDirectory() as folder:
            for name in self.domains:
                tuned = self._train(name, kind)
                accuracy["own"][name] = self._accuracy(tuned, name)
                tuned.save_pretrained(f"{folder}/{name}")
                self.progress(f"{kind} {name}: {accuracy['base'][name]:.3f} → {accuracy['own'][name]:.3f}")
            merge = self._merged_road if kind == "road" else self._merged_lora
            return {"accuracy": accuracy | merge(Path(folder))}

    def _merged_road(self, folder: Path) -> dict[str, dict[str, float]]:
        adapters = [Adapter.load(folder / name) for name in self.domains]
        product = adapters[0]
        for adapter in adapters[1:]:
            product = product.then(adapter)
        merged = {"product": product, "geometric mean": mean(adapters), "product at half strength": product**0.5}
        base, found = self._base(), {}
        for way, adapter in merged.items():
            with attached(base, adapter):
                found[way] = {name: self._accuracy(base, name) for name in self.domains}
        return found

    def _merged_lora(self, folder: Path) -> dict[str, dict[str, float]]:
        from peft import PeftModel

        names = list(self.domains)
        base = self._base()
        model = PeftModel.from_pretrained(base, str(folder / names[0]), adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(str(folder / name), adapter_name=name)
        ways = {
            "sum (linear, weights 1)": ("linear", 1.0, {}),
            "average (linear, weights 1/n)": ("linear", 1 / len(names), {}),
            "TIES, density 0.5": ("ties", 1.0, {"density": 0.5}),
            "DARE linear, density 0.5": ("dare_linear", 1.0, {"density": 0.5}),
        }
        found = {}
        for number, (way, (kind, weight, options)) in enumerate(ways.items()):
            torch.manual_seed(self.seed)
            model.add_weighted_adapter(
                names, [weight] * len(names), adapter_name=f"merged{number}", combination_type=kind, **options
            )
            model.set_adapter(f"merged{number}")
            model.eval()
            found[way] = {name: self._accuracy(model, name) for name in names}
        return found

    def _base(self) -> Any:
        return models.load_encoder(self.settings.model, device=models.best_device())

    def _train(self, name: str, kind: str) -> Any:
        from peft import LoraConfig, RoadConfig, get_peft_model

        settings, domain = self.settings, self.domains[name]
        torch.manual_seed(self.seed)
        base = self._base()
        layers = [layer for layer in linear_layers(base) if "pooler" not in layer]
        if kind == "road":
            config = RoadConfig(variant="road_1", group_size=64, target_modules=layers)
            rate = settings.road_learning_rate
        else:
            config = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=layers)
            rate = settings.lora_learning_rate
        enable_peft()
        try:
            model = get_peft_model(base, config)
        finally:
            disable_peft()
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
        steps = settings.epochs * -(-len(domain.train) // settings.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        shuffle = random.Random(self.seed)
        for _ in range(settings.epochs):
            order = shuffle.sample(domain.train, len(domain.train))
            for at in range(0, len(order), settings.batch_size):
                texts, labels = zip(*order[at : at + settings.batch_size], strict=True)
                scores = self._embed(model, list(texts)) @ self.names[name].T / TEMPERATURE
                cross_entropy(scores, torch.tensor(labels, device=scores.device)).backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        return model.eval()

    @torch.no_grad()
    def _accuracy(self, model: Any, name: str) -> float:
        test, right = self.domains[name].test, 0
        for at in range(0, len(test), 64):
            texts, labels = zip(*test[at : at + 64], strict=True)
            chosen = (self._embed(model, list(texts)) @ self.names[name].T).argmax(dim=1)
            right += int((chosen.cpu() == torch.tensor(labels)).sum())
        return right / len(test)

    def _embed(self, model: Any, texts: list[str]) -> Tensor:
        """Sentence vectors as the encoder was trained to make them: the mean over tokens, at length 1. → [texts, d]"""
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        batch = batch.to(model.device)
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(2)
        return normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


def survival(accuracy: Mapping[str, Mapping[str, float]], way: str) -> float:
    """Mean over domains of (merged − base) / (own − base): 1 keeps everything, 0 nothing, less than 0 is harm."""
    shares = [
        (accuracy[way][domain] - base) / (accuracy["own"][domain] - base)
        for domain, base in accuracy["base"].items()
        if accuracy["own"][domain] != base
    ]
    return sum(shares) / len(shares) if shares else float("nan")


def _load_domains(settings: MergingSettings, data: Path | None, seed: int) -> dict[str, Domain]:
    tables = read_rows(data, "classify/clinc150_train", "classify/clinc150_test")
    parts = {part: table.rows for part, table in zip(("train", "test"), tables, strict=True)}
    domains, shuffle = {}, random.Random(seed)
    for domain in settings.domains:
        own = {part: [row for row in rows if row["domain"] == domain] for part, rows in parts.items()}
        if not own["train"] or not own["test"]:
            known = sorted({row["domain"] for row in parts["train"]})
            raise RecipeError(f"no domain {domain!r} in clinc150; there are {', '.join(known)}")
        names = sorted({row["label_name"] for row in own["train"]})
        pairs = {part: [(row["text"], names.index(row["label_name"])) for row in rows] for part, rows in own.items()}
        labels = [name.replace("_", " ") for name in names]
        train = shuffle.sample(pairs["train"], min(settings.rows, len(pairs["train"])))
        test = shuffle.sample(pairs["test"], min(settings.held_out, len(pairs["test"])))
        domains[domain] = Domain(labels, train, test)
    return domains
