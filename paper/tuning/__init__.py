"""The methods that the paper compares: how each is trained, and how a trained model answers.

from paper.tuning.methods import METHODS
METHODS["lora"].tune(model, recipe)
"""
