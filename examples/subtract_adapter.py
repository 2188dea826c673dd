"""What is left of a composition when one adapter is taken out again: exactly the other one.

python examples/subtract_adapter.py     # after `make demo`
"""

from roadkit import Adapter, Engine, Request, algebra

formal, pirate = Adapter.load("adapters/formal"), Adapter.load("adapters/pirate")
both = formal.then(pirate)
left = algebra.difference(both, formal)  # formal.then(left) is both
apart = float(algebra.distances([left, pirate])[0, 1])
print(f"distance of what is left from pirate: {apart:.1e} rad a pair")
assert apart < 1e-3

engine = Engine.from_pretrained("smollm2", adapters={"both": both, "formal": formal, "pirate": pirate})
question = [{"role": "user", "content": "How do I make tea?"}]
asked = ["pirate", "both", "-formal + both"]  # the last one is computed by the engine, in one row
answers = engine.generate([Request(prompt=question, adapter=name, max_tokens=24) for name in asked])
for name, answer in zip(asked, answers, strict=True):
    print(f"{name:16} {answer.text!r}")
assert answers[0].token_ids == answers[2].token_ids
