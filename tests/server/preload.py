"""What the process that servers are forked from imports, once."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import transformers.models.llama.modeling_llama  # noqa: F401
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401

import roadkit.cli  # noqa: F401
import roadkit.engine.engine  # noqa: F401
import roadkit.server.embedded  # noqa: F401
import roadkit.server.launch  # noqa: F401
