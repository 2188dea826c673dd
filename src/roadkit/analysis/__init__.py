"""What fine-tuning does to representations, as numbers: how far they move in length and in direction, and what of them
a classifier needs.

    from roadkit.analysis.displacement import displacement
"""
