"""How RoAd is switched on, and what an unsupported vLLM answers."""

from types import SimpleNamespace

import pytest

from roadkit.errors import RoadkitError
from roadkit.vllm_plugin import _watch_configuration, register, support
from roadkit.vllm_plugin.worker import EXTENSION


def _config(additional, lora=True):
    compilation = SimpleNamespace(cudagraph_specialize_lora=True, mode="compile")
    return SimpleNamespace(
        additional_config=additional,
        lora_config=object() if lora else None,
        compilation_config=compilation,
        parallel_config=SimpleNamespace(worker_extension_cls=""),
    )


def test_off_without_the_key_and_on_with_it():
    assert support.plugin_options(_config({})) is None
    assert support.plugin_options(_config({"other": 1})) is None
    for given, sizes in (({}, (64,)), ({"group_sizes": [64, 2, 64]}, (64, 2))):
        options = support.plugin_options(_config({"roadkit": given}))
        assert options is not None
        assert options.group_sizes == sizes


@pytest.mark.parametrize(
    ("options", "lora", "message"),
    [
        ({"group_size": [64]}, True, "unknown option 'group_size'; did you mean 'group_sizes'"),
        ({"group_sizes": [3]}, True, "even numbers of at least 2, got \\[3\\]"),
        ({"group_sizes": []}, True, "even numbers"),
        ({"group_sizes": 64}, True, "must be a list such as"),
        ("yes", True, "must be an object"),
        ({}, False, "add --enable-lora"),
    ],
)
def test_wrong_options_name_the_mend(options, lora, message):
    with pytest.raises(RoadkitError, match=message):
        support.plugin_options(_config({"roadkit": options}, lora=lora))


class _Platform:
    device_type = "cpu"

    @staticmethod
    def check_and_update_config(config):
        config.seen = config.lora_config


def test_the_cpu_platform_does_not_see_the_lora_configuration():
    platform = type("P", (_Platform,), {})
    _watch_configuration(platform, supported=True)
    on, off = _config({"roadkit": {}}), _config({})
    platform.check_and_update_config(on)
    platform.check_and_update_config(off)
    assert on.seen is None and on.lora_config is not None and on.compilation_config.cudagraph_specialize_lora is False
    assert off.seen is off.lora_config and off.compilation_config.cudagraph_specialize_lora is True


def test_workers_get_the_method_unless_somebody_else_needs_theirs():
    platform = type("P", (_Platform,), {})
    _watch_configuration(platform, supported=True)
    on, off, taken = _config({"roadkit": {}}), _config({}), _config({"roadkit": {}})
    platform.check_and_update_config(on)
    platform.check_and_update_config(on)
    platform.check_and_update_config(off)
    assert on.parallel_config.worker_extension_cls == EXTENSION and off.parallel_config.worker_extension_cls == ""
    taken.parallel_config.worker_extension_cls = "their.Extension"
    with pytest.raises(RoadkitError, match=r"worker_extension_cls, which is 'their\.Extension'"):
        platform.check_and_update_config(taken)


def test_unsupported_vllm_refuses_only_engines_that_ask():
    platform = type("P", (_Platform,), {})
    _watch_configuration(platform, supported=False)
    platform.check_and_update_config(_config({}))
    with pytest.raises(support.UnsupportedVllm, match=r"supports vLLM >=0.32,<0.33, this is 0\.32"):
        platform.check_and_update_config(_config({"roadkit": {}}))


def test_registering_again_changes_nothing():
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    register()
    before = current_platform.check_and_update_config, LLMEngine.add_request
    register()
    assert (current_platform.check_and_update_config, LLMEngine.add_request) == before
