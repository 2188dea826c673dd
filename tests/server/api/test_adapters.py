"""Adapters that come, change and go while the server runs."""

import json
import shutil
import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file


def test_upload_serve_replace_delete(server, made):
    created = server.upload("fresh", made(3))
    assert created.status_code == 201 and created.json()["version"]
    first = server.answer("fresh")
    assert first != server.answer("tiny")
    again = server.upload("fresh", made(4))
    assert again.json()["version"] != created.json()["version"]
    assert server.answer("fresh") not in (first, server.answer("tiny"))
    assert server.answer("fresh - fresh") == server.answer("tiny")
    assert server.http.get("/v1/adapters/fresh").json()["version"] == again.json()["version"]
    assert server.http.delete("/v1/adapters/fresh").json()["deleted"]
    assert server.answer("fresh") == 404 and server.http.get("/v1/adapters/fresh").status_code == 404


def test_compose_freezes_an_expression(server):
    made = server.http.post("/v1/adapters/frozen/compose", json={"expression": "quick*0.7 + lazy"})
    assert made.status_code == 201, made.text
    assert server.answer("frozen") == server.answer("quick*0.7 + lazy")
    assert server.http.delete("/v1/adapters/frozen").status_code == 200
    assert server.http.post("/v1/adapters/x/compose", json={"expression": "nothing"}).status_code == 404
    assert server.http.post("/v1/adapters/x/compose", json={"expression": "tiny"}).status_code == 400


def test_a_running_request_keeps_its_version(server, made):
    server.upload("moving", made(5))
    alone = server.answer("moving", max_tokens=200)
    results = []
    with server.openai.completions.create(
        model="moving", prompt="the quick brown", max_tokens=200, temperature=0, stream=True
    ) as stream:
        pieces = iter(stream)
        results.append(next(pieces).choices[0].text)
        server.upload("moving", made(6))
        server.http.delete("/v1/adapters/moving")
        results += [piece.choices[0].text for piece in pieces]
    assert "".join(results) == alone


@pytest.mark.parametrize(
    "name", ["../../etc/x", "a/../../b", "/abs", ".hidden", "a\x00b", "tiny", "x" * 500, "a b", "a+b", "-a", "", "a//b"]
)
def test_names_lead_nowhere_else(server, made, name):
    assert server.upload(name, made(3)).status_code == 400


def broken(made, tmp_path, change):
    folder = tmp_path / "adapter"
    shutil.copytree(made(3), folder)
    weights = folder / "adapter_model.safetensors"
    config = folder / "adapter_config.json"
    if change == "pickle":
        torch.save({"a": torch.ones(2)}, weights)
    elif change == "old pickle":
        import pickle

        weights.write_bytes(pickle.dumps({"a": 1}, protocol=4))
    elif change == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif change == "zip":
        import zipfile

        with zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb", b"\0" * 10_000_000)
    elif change == "nested json":
        config.write_text("[" * 100_000)
    elif change == "huge header":
        weights.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    elif change == "other kind":
        config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "LORA"}))
    else:
        tensors = load_file(weights)
        key = next(key for key in tensors if key.endswith("alpha"))
        if change == "nan":
            tensors[key][0] = float("nan")
        elif change == "huge alpha":
            tensors[key][:] = 1e30
        elif change == "other base":
            tensors = {key.replace("layers.1", "layers.77"): value for key, value in tensors.items()}
        elif change == "wider":
            tensors = {key: torch.cat([value, value]) for key, value in tensors.items()}
        save_file(tensors, weights, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "change",
    ["pickle", "old pickle", "truncated", "zip", "nested json", "huge header", "other kind", "nan", "huge alpha",
     "other base", "wider"],
)  # fmt: skip
def test_bad_uploads_are_refused_and_leave_nothing(server, made, tmp_path, change):
    response = server.upload("bad", broken(made, tmp_path, change))
    assert response.status_code == 400, response.text
    assert "Traceback" not in response.text and str(tmp_path) not in response.text
    assert server.http.get("/v1/adapters/bad").status_code == 404


def test_a_wrong_model_structure_is_refused(server, made, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(made(3), folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors, folder / "adapter_model.safetensors", {"roadkit.base_fingerprint": "0" * 16})
    assert "structure" in server.upload("bad", folder).json()["error"]["message"]


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc",
        "/etc/passwd",
        "s3://bucket/x",
        "simplecache::http://x/y",
        "http://127.0.0.1/x",
        "http://169.254.169.254/a",
    ],
)
def test_sources_are_refused_by_default(server, source):
    response = server.http.post("/v1/adapters", json={"name": "x", "source": source})
    assert response.status_code == 400 and "not among the sources" in response.json()["error"]["message"]


def test_kill_during_uploads_leaves_whole_versions(start, made, tmp_path):
    """SIGKILL at some point of a stream of uploads; after a restart, every adapter is one of those sent."""
    registry = tmp_path / "registry"
    folders = [made(seed) for seed in (11, 12, 13)]
    server = start("--registry", str(registry))
    accepted: dict[str, str] = {}
    possible: dict[str, set[str]] = {}
    expected = {}
    for folder in folders:
        assert server.upload("probe", folder).status_code == 201
        expected[folder] = server.answer("probe")

    def flood() -> None:
        try:
            for i in range(10_000):
                name, folder = f"n{i % 5}", folders[i % 3]
                possible.setdefault(name, set()).add(expected[folder])
                if server.upload(name, folder).status_code == 201:
                    accepted[name] = expected[folder]
        except Exception:  # the server is gone, as planned
            return

    thread = threading.Thread(target=flood)
    thread.start()
    while len(accepted) < 5:
        time.sleep(0.01)
    time.sleep(0.237)
    server.kill()
    thread.join()
    server.stop()
    (registry / "_local" / "_half" / "versions" / ".x.tmp").mkdir(parents=True)
    server = start("--registry", str(registry))
    names = {entry["id"] for entry in server.http.get("/v1/adapters").json()["data"]}
    assert names == {*accepted, "probe"}
    for name in accepted:
        assert server.answer(name) in possible[name]
    leftovers = [path for path in registry.rglob("*") if ".tmp" in path.name]
    assert leftovers == [] and server.stop() == 0
