"""An encoder on GLUE rows: it learns, the same seed gives the same run, and its pooler trains unless it is frozen."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import RobertaConfig, RobertaForSequenceClassification

from paper.tuning.encoders import EncoderData, with_pooler
from roadkit import models
from roadkit.train.model.base import training_device


def test_training_improves_on_the_head_it_began_with(encoder, data):
    rows = EncoderData.load("sst2", dataclasses.replace(encoder, rows=None, epochs=6), data=data, seed=0)
    fitted = rows.fit(rows.fresh(), "road_1", 2e-2)
    assert fitted.validation["accuracy"] > 0.9
    assert rows.score(fitted.model, rows.test) > 0.9
    assert rows.score(rows.fresh(), rows.test) < 0.9


def test_the_same_seed_gives_the_same_run(encoder, data):
    rows = EncoderData.load("cola", encoder, data=data, seed=3)
    losses = [rows.fit(rows.fresh(), "lora", 1e-2).train_loss for _ in range(2)]
    assert losses[0] == losses[1]


def test_the_pooler_trains_with_the_classifier_unless_frozen(encoder, data):
    for frozen, heads in ((False, {"bert.pooler", "classifier"}), (True, {"classifier"})):
        rows = EncoderData.load("sst2", dataclasses.replace(encoder, frozen_pooler=frozen), data=data, seed=0)
        tuned = rows.fit(rows.fresh(), "head", 1e-2).model
        assert {
            name.rpartition(".dense")[0] or name.rpartition(".")[0]
            for name, p in tuned.named_parameters()
            if p.requires_grad
        } == heads
    tiny: dict[str, Any] = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    roberta = RobertaForSequenceClassification(RobertaConfig(**tiny))
    assert with_pooler(roberta, rows.prepared.recipe) == ("classifier",)  # which has such a layer inside


def test_models_go_where_there_is_a_gpu(encoder, data, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert models.best_device() == training_device(None) == "cuda"
    monkeypatch.setattr(models, "best_device", lambda: "meta")
    rows = EncoderData.load("sst2", encoder, data=data, seed=0)
    assert rows.fresh().device.type == "meta"
