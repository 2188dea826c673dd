"""`Metrics`: what Prometheus reads at `/metrics`. Labels are bounded: whatever comes after `MAX_LABELS` is '(other)'.

metrics = Metrics()
metrics.finished(tenant="acme", adapter="formal", job=job, completion=completion)
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..engine.request import Completion
from .backends.base import GenerationJob, Stats

MAX_LABELS = 100  # tenants, and pairs of a tenant and an adapter
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def label_of(model: str) -> str:
    """What an expression is counted under: an adapter's name, or '(composed)'."""
    is_name = not model.startswith("-") and "*" not in model and " " not in model
    return model if is_name else "(composed)"


class Metrics:
    """The server's counters, in a registry of their own (two servers in one process do not collide)."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=True)
        names = ["tenant", "adapter"]
        self.requests = Counter("roadkit_http_requests", "Requests", ["route", "status"], registry=registry)
        self.first_token = Histogram(
            "roadkit_time_to_first_token_seconds", "From arrival", names, buckets=_FAST, registry=registry
        )
        self.per_token = Histogram(
            "roadkit_time_per_output_token_seconds", "After the first", names, buckets=_FAST, registry=registry
        )
        self.queue_time = Histogram(
            "roadkit_queue_seconds", "Waiting for a row", names, buckets=_FAST, registry=registry
        )
        self.prompt_tokens = Counter("roadkit_prompt_tokens", "Prompt tokens", names, registry=registry)
        self.cached_tokens = Counter("roadkit_cached_prompt_tokens", "Not computed again", names, registry=registry)
        self.generated_tokens = Counter("roadkit_generated_tokens", "Generated tokens", names, registry=registry)
        self.answers = Counter("roadkit_answers", "Ended", names, registry=registry)
        self.completions = Counter("roadkit_completions", "Ended, by reason", ["reason"], registry=registry)
        self.loads = Counter("roadkit_adapter_loads", "Compositions brought into memory", registry=registry)
        self.evictions = Counter("roadkit_adapter_evictions", "Compositions that left memory", registry=registry)
        self.load_seconds = Histogram(
            "roadkit_adapter_load_seconds", "Reading and checking one", buckets=_FAST, registry=registry
        )
        self.registered = Gauge("roadkit_adapters_registered", "Adapters known", registry=registry)
        self.resident = Gauge("roadkit_adapters_resident", "Compositions in memory", registry=registry)
        self.rows = Gauge("roadkit_bank_rows_used", "Compositions in the bank's rows", registry=registry)
        self.running = Gauge("roadkit_requests_running", "In the batch", registry=registry)
        self.waiting = Gauge("roadkit_requests_waiting", "In the queue", registry=registry)
        self.cache_used = Gauge("roadkit_cache_pages_used_ratio", "Key/value pages in use", registry=registry)
        self._tenants: set[str] = set()
        self._pairs: set[tuple[str, str]] = set()

    def finished(self, *, tenant: str, adapter: str, job: GenerationJob, completion: Completion) -> None:
        """Count one answer."""
        labels = self.bounded(tenant, adapter)
        generated = len(completion.token_ids)
        self.prompt_tokens.labels(*labels).inc(completion.prompt_tokens)
        self.cached_tokens.labels(*labels).inc(completion.cached_tokens)
        self.generated_tokens.labels(*labels).inc(generated)
        self.answers.labels(*labels).inc()
        self.completions.labels(completion.finish_reason).inc()
        if job.started is not None:
            self.queue_time.labels(*labels).observe(job.started - job.submitted)
        if job.first is not None:
            self.first_token.labels(*labels).observe(job.first - job.arrived)
            if job.finished is not None and generated > 1:
                self.per_token.labels(*labels).observe((job.finished - job.first) / (generated - 1))

    def encoded(self, *, tenant: str, adapter: str, texts: int, tokens: int) -> None:
        """Count one request to an encoder."""
        labels = self.bounded(tenant, adapter)
        self.prompt_tokens.labels(*labels).inc(tokens)
        self.answers.labels(*labels).inc(texts)

    def page(self, stats: Stats, *, registered: int, resident: int) -> bytes:
        """The text that Prometheus reads."""
        self.registered.set(registered)
        self.resident.set(resident)
        self.rows.set(stats.resident)
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self.cache_used.set(stats.cache_used)
        return generate_latest(self.registry)

    def bounded(self, tenant: str, adapter: str) -> tuple[str, str]:
        """Both labels of a request; '(other)' for the adapter, then for the tenant too, once there are too many."""
        if (tenant, adapter) in self._pairs or len(self._pairs) < MAX_LABELS:
            self._pairs.add((tenant, adapter))
            self._tenants.add(tenant)
            return tenant, adapter
        if tenant in self._tenants or len(self._tenants) < MAX_LABELS:
            self._tenants.add(tenant)
            return tenant, "(other)"
        return "(other)", "(other)"
