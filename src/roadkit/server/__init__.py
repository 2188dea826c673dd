"""An OpenAI-compatible server where every request picks, scales and composes its adapters: `roadkit serve smollm2`."""
