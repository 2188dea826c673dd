"""What clients send and get: chat, completions, embeddings and adapters, in the shapes of OpenAI's API."""
