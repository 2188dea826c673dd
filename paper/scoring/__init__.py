"""Evaluation: what training gained, on rows that it did not see.

from roadkit.evaluate.compare import compare
print(compare(load_recipe("recipes/completion.yaml")).rows["tuned"])
"""
