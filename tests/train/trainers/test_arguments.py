"""What transformers' trainer is told: one GPU a process, and which parameters a step may leave unused."""

from __future__ import annotations

from types import SimpleNamespace

from transformers import LlamaConfig, LlavaConfig, TrainingArguments

from roadkit.train.trainers.arguments import training_arguments


def test_one_process_uses_one_of_several_gpus(make_recipe, tiny_llama):
    class OfFour(TrainingArguments):
        def __post_init__(self):
            super().__post_init__()
            self._n_gpu = 4

    made = training_arguments(make_recipe(batch_size=2), OfFour, tiny_llama(), device="cpu")
    assert (made.n_gpu, made.train_batch_size) == (1, 2)


def test_only_models_with_a_vision_tower_may_leave_parameters_unused(make_recipe):
    for config, unused in ((LlavaConfig(), True), (LlamaConfig(), False)):
        made = training_arguments(make_recipe(), TrainingArguments, SimpleNamespace(config=config), device="cpu")
        assert made.ddp_find_unused_parameters is unused
