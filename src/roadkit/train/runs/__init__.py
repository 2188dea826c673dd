"""Training runs: one adapter (`single`), many at once (`many`), or a preview that trains nothing (`preview`).

Each of the three reads and checks the data first, and only then imports what trains, for torch, PEFT and TRL take
seconds: a mistake in the data shows at once.
"""
