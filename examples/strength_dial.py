"""One adapter at seven strengths, from undone to doubled, answered in one batch.

python examples/strength_dial.py        # after `make demo`, which trains adapters/pirate
"""

from roadkit import Engine, Request

STRENGTHS = (-1, 0, 0.25, 0.5, 1, 1.5, 2)

engine = Engine.from_pretrained("smollm2", adapters={"pirate": "adapters/pirate"})
question = [{"role": "user", "content": "What is the capital of France?"}]
dial = [None if w == 0 else f"-pirate*{-w}" if w < 0 else f"pirate*{w}" for w in STRENGTHS]
answers = engine.generate([Request(prompt=question, adapter=name, max_tokens=24) for name in dial])
for strength, answer in zip(STRENGTHS, answers, strict=True):
    print(f"{strength:6.2f} {answer.text!r}")
