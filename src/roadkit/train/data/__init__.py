"""From a file to token ids: tables, their formats and labels, and the tokens that bear the loss."""
