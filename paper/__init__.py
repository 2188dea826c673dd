"""The experiments of the RoAd paper (arXiv 2409.00119), and some of our own. They use roadkit; roadkit knows nothing of them.

python -m paper --help
"""
