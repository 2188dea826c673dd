"""The experiments, one a file. Each keeps its finished runs in a ledger.

from paper.runs.glue import run_glue
run_glue(EncoderSettings(rows=400), Ledger(path), data=None, methods=["road_1", "lora"])
"""
