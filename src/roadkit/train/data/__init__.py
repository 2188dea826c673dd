"""From a file to token ids: tables, their formats, labels, and the tokens that bear the loss."""
