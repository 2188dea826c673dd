"""Learning rates for the shipped recipes: a held-out score for each, appended to docs/data/sweep.jsonl.

ROADKIT_DATA=../data roadkit bench sweep      # rows that the file has already are not run again
"""

import json
import os
import tempfile
from pathlib import Path

from roadkit.errors import RoadkitError
from roadkit.train import load_recipe
from roadkit.train import run as train

ROOT = Path(__file__).resolve().parents[1]
LEDGER = ROOT / "docs" / "data" / "sweep.jsonl"
RATES = (1e-3, 3e-3, 5e-3, 8e-3, 2e-2)
EXAMPLES = 1500
TASKS = {  # recipe: (metric, what it is trained and scored on; the paper's protocol cuts the development rows in half)
    "completion": ("eval_loss", {}),
    "classification": ("eval_accuracy", {"data": "glue/mrpc_train.jsonl.gz", "eval_data": "glue/mrpc_dev.jsonl"}),
    "regression": ("eval_pearson", {"data": "glue/stsb_train.jsonl", "eval_data": "glue/stsb_dev.jsonl"}),
}


def run(rounds: int = 1) -> dict:
    """One run for each recipe and rate (rounds: seeds). Encoders see 1,500 rows for 3 epochs, no best checkpoint."""
    done = [json.loads(line) for line in LEDGER.read_text().splitlines()] if LEDGER.exists() else []
    seen = {(row["recipe"], row["learning_rate"], row["seed"]) for row in done}
    for seed in range(rounds):
        for name, (metric, data) in TASKS.items():
            for rate in RATES:
                if (name, rate, seed) not in seen:
                    done.append(measure(name, metric, data, rate, seed))
                    with LEDGER.open("a") as ledger:
                        ledger.write(json.dumps(done[-1]) + "\n")
    return {
        name: {f"{row['learning_rate']:g}": row[metric] for row in done if row["recipe"] == name}
        for name, (metric, _) in TASKS.items()
    }


def measure(name: str, metric: str, data: dict[str, str], rate: float, seed: int) -> dict:
    folder = os.environ.get("ROADKIT_DATA")
    if data and not folder:
        raise RoadkitError("ROADKIT_DATA names no folder with glue/ in it")
    changes = [f"{key}={Path(str(folder)) / file}" for key, file in data.items()]
    if data:
        changes += [f"max_examples={EXAMPLES}", "epochs=3", "eval_steps=null", "best=null"]
    with tempfile.TemporaryDirectory() as out:
        settings = [f"learning_rate={rate}", f"seed={seed}", f"output={out}/adapter", *changes]
        result = train(load_recipe(ROOT / "recipes" / f"{name}.yaml", settings))
    kept = {key: round(value, 4) for key, value in result.metrics.items()}
    return {"recipe": name, "learning_rate": rate, "seed": seed, "steps": result.steps, **kept, "metric": metric}
