"""Paper and ours side by side: the right average, the scale, and a command that gives these very runs."""

from __future__ import annotations

import dataclasses

from paper.report.summary import summary_lines
from paper.runs.glue import glue_setup, search_settings
from paper.runs.reasoning import RateSearch
from paper.scoring.suites import SUITES
from paper.tuning.decoders import DECODER_SCALES, DecoderSettings
from paper.tuning.encoders import ENCODER_SCALES, EncoderSettings


def row(setup, seed=0, **metrics):
    return {"key": str((sorted(map(str, setup.items())), seed)), "recipe": setup, "seed": seed, "metrics": metrics}


def test_glue_beside_the_paper_with_its_command():
    settings = EncoderSettings(rows=100, epochs=3, search_epochs=1, bf16=True)
    search = [
        row(glue_setup(search_settings(settings), "sst2", "road_1", rate), validation=rate, test=0.1, trainable=7)
        for rate in (0.1, 0.2)
    ]
    final = [
        row(glue_setup(settings, "sst2", "road_1", 0.2), seed, validation=0.9, test=0.8 + seed / 10, trainable=7)
        for seed in (0, 1)
    ]
    text = "\n".join(summary_lines([*search, *final]))
    assert "| RoAd1 | 85.6 (RoBERTa-base) | 85.0 ± 7.1 | 7 |" in text
    assert (
        "`python -m paper glue --rows 100 --bf16 --search-epochs 1 --head-learning-rate 0 --tasks sst2 "
        "--methods road_1 --rates 2 --seeds 2`" in text
    )
    assert "100 training rows" in text and "2 seeds" in text
    other = row(glue_setup(search_settings(settings), "sst2", "lora", 0.1), validation=0.5, test=0.1, trainable=9)
    assert "--methods road_1 --rates 2" in "\n".join(
        summary_lines([*search, *final, other])
    )  # whose search is not done


def test_a_suite_says_its_questions_and_leaves_out_what_is_usual():
    tasks = ["mawps", "svamp"]
    settings = dataclasses.asdict(DecoderSettings(questions=60, new_tokens=128))
    setup = {"experiment": "arithmetic", **settings, "tasks": tasks, "method": "base", "learning_rate": 0.0}
    text = "\n".join(summary_lines([row(setup, accuracy=dict.fromkeys(tasks, 0.25), trainable=0)]))
    assert "`python -m paper arithmetic --questions 60 --tasks mawps,svamp --methods base`" in text
    assert "| base | – | 25.0 | 0 |" in text


def test_a_suites_search_is_in_its_command():
    settings, search = DecoderSettings(new_tokens=128), RateSearch(rates=2, rows=100, held_out=20)
    tasks = list(SUITES["arithmetic"].tasks)
    setup = {"experiment": "arithmetic", **dataclasses.asdict(settings), "tasks": tasks, "method": "road_1"}
    found = [row(setup | {"learning_rate": 1e-3}, accuracy=dict.fromkeys(tasks, 0.5), trainable=9)]
    found += [
        row(search.setup("arithmetic", settings, "road_1", rate), accuracy={"gsm8k": 0.5}, validation=0.5, trainable=9)
        for rate in search.tried("road_1")
    ]
    words = "--methods road_1 --rates 2 --search-rows 100 --held-out 20`"
    assert words in "\n".join(summary_lines(found)) and "--rates" not in "\n".join(summary_lines(found[:1]))


def test_the_full_scale_and_presets_have_options_of_their_own():
    setup = glue_setup(ENCODER_SCALES["full"], "rte", "road_1", 3e-3, preset=True)
    text = "\n".join(summary_lines([row(setup, seed, validation=0.9, test=0.8, trainable=7) for seed in (0, 1, 2)]))
    assert "`python -m paper glue --scale full --tasks rte --methods road_1 --presets --seeds 3`" in text
    setup = {
        "experiment": "commonsense",
        **dataclasses.asdict(DECODER_SCALES["full"]),
        "tasks": ["boolq"],
        "method": "road_1",
    }
    text = "\n".join(summary_lines([row(setup | {"learning_rate": 3e-3}, 2, accuracy={"boolq": 0.5}, trainable=7)]))
    assert (
        "`python -m paper commonsense --scale full --tasks boolq --methods road_1 --last-epoch --seed 2 --seeds 1`"
        in text
    )


def test_nothing_finished():
    assert summary_lines([]) == ["No finished run yet."]
