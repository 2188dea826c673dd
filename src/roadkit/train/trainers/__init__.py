"""TRL's and transformers' trainers with roadkit's files, guards, reports and checkpoints."""
