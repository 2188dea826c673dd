"""Which adapters are alike, and where two of them turn against each other.

python examples/who_is_nearest.py       # after `make demo`, or with a folder of your own adapters
"""

import sys
from pathlib import Path

from roadkit import Adapter, algebra

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "adapters")
adapters = {path.name: Adapter.load(path) for path in sorted(folder.iterdir()) if path.is_dir()}
names = list(adapters)
matrix = algebra.distances(list(adapters.values()))
for i, name in enumerate(names):
    nearest = min((j for j in range(len(names)) if j != i), key=lambda j: float(matrix[i, j]))
    print(f"{name:10} is nearest to {names[nearest]:10} ({float(matrix[i, nearest]):.4f} rad a pair)")

one, other, apart = algebra.cluster(matrix)[0]
print(f"the first cluster: {names[one]} and {names[other]}, {apart:.4f} apart")
worst = max(algebra.conflicts(adapters[names[one]], adapters[names[other]]), key=lambda row: row["share"])
print(f"they turn {worst['opposed']} of {worst['both']} pairs against each other in {worst['layer']}")
