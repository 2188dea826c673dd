"""What the process that servers are forked from imports, once."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import transformers.models.llama.modeling_llama  # noqa: F401
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401

import roadkit.cli
import roadkit.engine.engine
import roadkit.server.backends.embedded
import roadkit.server.launch  # noqa: F401
