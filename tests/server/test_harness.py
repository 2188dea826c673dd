"""EleutherAI's lm-evaluation-harness asks the whole server through its completions client, an expression as the model."""

import pytest


def test_the_servers_likelihoods_are_the_models(server, tiny_folder, made, harness):
    ask = harness(["the quick", "over the", "a lazy", "jumps"], [" brown", " lazy", " fox"])
    api = f"base_url={server.url}/v1/completions,tokenizer={tiny_folder},num_concurrent=1,max_length=512"
    base, tuned, undone = (
        ask("local-completions", f"model={name},{api}") for name in ("tiny", "quick", "quick - quick")
    )
    reference = f"pretrained={tiny_folder},dtype=float32,add_bos_token=False"
    for found, expected in (
        (base, ask("hf", reference)),
        (tuned, ask("hf", f"{reference},peft={made(1)}")),
        (undone, base),
    ):
        assert [pytest.approx(row, abs=2e-3) for row in expected] == found
    assert base != tuned
