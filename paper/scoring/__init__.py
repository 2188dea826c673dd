"""How answers and representations are scored, by the rules that were published for each task.

from paper.scoring import commonsense
commonsense.extract("piqa", "the correct answer is solution2")      # "solution2"
"""
