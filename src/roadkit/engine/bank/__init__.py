"""The bank: many adapters resident side by side, each row of a batch rotated by its own.

from roadkit.engine.bank import Bank
"""

from .bank import Bank as Bank
