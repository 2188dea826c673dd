"""Two tasks learn in two halves of one hidden state at once, then answer apart and together in one batch.

python examples/intervene_and_compose.py
"""

from roadkit import Engine, Request, models
from roadkit.intervene import Subspace, site
from roadkit.intervene.training import encode_tasks, train
from roadkit.train import Recipe
from roadkit.train.data.tables import Table

ROWS = [
    {"subspace": "german", "prompt": "Good morning.", "completion": "Guten Morgen."},
    {"subspace": "german", "prompt": "Where is the station?", "completion": "Wo ist der Bahnhof?"},
    {"subspace": "shout", "prompt": "Name a fruit.", "completion": "APPLE!"},
    {"subspace": "shout", "prompt": "Name a colour.", "completion": "BLUE!"},
]

model, tokenizer = models.load_causal("smollm2"), models.load_tokenizer("smollm2")
recipe = Recipe(model="smollm2", data="rows", output="tasks", max_length=64)
rows = encode_tasks(recipe, tokenizer, table=Table(ROWS, range(1, len(ROWS) + 1), "rows"))
german, shout = Subspace.split(model.config.hidden_size, 2)
learnt = train(
    model, rows, subspaces={"german": german, "shout": shout}, sites=[site(model, 14)],
    positions="last:1", epochs=4, batch_size=4, learning_rate=2e-2,
)  # fmt: skip
learnt.intervention.save("tasks")
print("loss", " ".join(f"{loss:.2f}" for loss in learnt.losses))

engine = Engine.from_pretrained("smollm2", adapters={"tasks": "tasks"})  # or `roadkit generate --adapters tasks=tasks`
asked = [None, "tasks:german", "tasks:shout", "tasks:german + tasks:shout*0.5"]
question = [{"role": "user", "content": "Name an animal."}]
answers = engine.generate([Request(prompt=question, adapter=name, max_tokens=12) for name in asked])
for name, answer in zip(asked, answers, strict=True):
    print(f"{name!s:32} {answer.text!r}")
