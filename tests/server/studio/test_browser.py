"""The Studio in a real browser, against a real server. `make test-studio` installs what this needs."""

import concurrent.futures
import json
import re
import sys
import threading

import httpx
import pytest
import torch

from roadkit.adapter import Adapter
from roadkit.describe import pairs
from roadkit.server.access.keys import Keyring, new_key
from tests.server.process import eventually

from .browser import AXE, Page, start_browser

pytestmark = pytest.mark.browser

PANELS = ("playground", "adapters", "anatomy?model=quick", "load")
EIGHT = ("", "quick", "lazy", "quick*0.5", "-lazy", "quick + lazy", "quick*0.3 - lazy*0.2", "lazy*1.5")
HOSTILE = "<img src=x onerror=document.title='taken'>"


@pytest.fixture(scope="module")
def driver():
    browser = start_browser()
    browser.set_script_timeout(120)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def studio(start, made, tmp_path_factory):
    """A server with `quick` and `lazy`, a registry, and eight rows."""
    registry = tmp_path_factory.mktemp("registry")
    adapters = [f"quick={made(1)}", f"lazy={made(2)}"]
    return start("--adapters", adapters[0], "--adapters", adapters[1], "--registry", str(registry), "--max-batch", "8")


@pytest.fixture
def page(driver, studio):
    """A page whose console stays silent."""
    shown = Page(driver, studio.url)
    yield shown
    assert shown.complaints() == []


@pytest.fixture
def refused(driver, studio):
    """A page that is refused something on purpose, and says nothing else on the console."""
    shown = Page(driver, studio.url)
    yield shown
    assert shown.complaints(refused=True) == []


def chatted(studio, model: str, *, tokens: int = 12, prompt: str = "the quick brown") -> str:
    body = {"model": model or "tiny", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    answer = studio.http.post("/v1/chat/completions", json=body | {"temperature": 0, "seed": 1})
    return answer.json()["choices"][0]["message"]["content"]


def show(capsys, figures: dict) -> None:
    """Print what was measured, whatever pytest captures."""
    with capsys.disabled():
        sys.stdout.write(f"\n{json.dumps(figures, ensure_ascii=False)}\n")


def test_eight_columns_stream_from_one_batch(page, studio):
    page.columns(*EIGHT, tokens=24)
    answers = page.run()
    assert answers == [chatted(studio, model, tokens=24) for model in EIGHT]
    status = page.text("#run-status")
    assert status.startswith("8 answers") and "8 at once in one batch" in status
    assert all(re.search(r"tok/s · first \d+ ms · \d+ tokens", text) for text in page.texts(".figures"))


def test_answers_grow_while_they_stream_and_stop_when_told(page, studio):
    page.columns("quick", "lazy", tokens=900)
    page.click("#run")
    page.until(lambda: len(page.texts(".answer")[0]) > 20)
    length = len(page.texts(".answer")[0])
    page.until(lambda: len(page.texts(".answer")[0]) > length)
    page.click("#stop")
    page.until(lambda: page.text("#run-status") == "Stopped")
    assert all("stopped" in text for text in page.texts(".figures"))
    assert eventually(lambda: studio.http.get("/v1/studio/stats").json()["running"] == 0)


def test_sliders_chips_and_text_say_the_same(page):
    page.columns("quick*0.7")
    page.fill(".chips input", -0.5)
    assert page.js("return document.querySelector('.expression').value") == "-quick*0.5"
    page.js("const s = document.querySelector('.add'); s.value = 'lazy'; s.dispatchEvent(new Event('change'))")
    assert page.js("return document.querySelector('.expression').value") == "-quick*0.5 + lazy"
    assert page.texts(".chips .name") == ["quick", "lazy"]
    page.click(".chips li:first-child button")
    assert page.js("return document.querySelector('.expression').value") == "lazy"
    page.fill(".expression", "0.25*lazy - quick")
    assert page.texts(".chips output") == ["0.25", "-1"]
    page.click("#add-column")
    page.click(".column:first-child [aria-label='Remove column 1']")
    assert len(page.all(".column")) == 1


def test_differences_are_marked_against_the_chosen_column(page):
    page.columns("quick", "quick", "lazy")
    first, second, third = page.run()
    page.until(lambda: bool(page.all(".column:nth-child(3) mark")))
    assert first == second != third and not page.all(".column:nth-child(2) mark")
    page.click(".column:nth-child(3) [aria-label='Compare the others with column 3']")
    page.until(lambda: bool(page.all(".column:nth-child(1) mark")) and not page.all(".column:nth-child(3) mark"))
    assert page.texts(".answer") == [first, second, third]
    page.click("#differences")
    page.until(lambda: not page.all("mark"))


def test_a_link_reproduces_the_state_and_programs_hold_the_columns(page):
    page.columns("quick*0.7 + lazy", "", prompt='it\'s "quoted"\nä')
    page.fill("#seed", 77)
    page.click("[data-copy=link]")
    link = page.js("return document.querySelector('#copy-text').value")
    page.click("#copy-dialog [data-close]")
    before = page.run()
    page.driver.get("about:blank")
    page.driver.get(link)
    page.until(lambda: len(page.all(".column")) == 2)
    values = page.js("return ['prompt', 'seed'].map((id) => document.getElementById(id).value)")
    assert values == ['it\'s "quoted"\nä', "77"] and page.run() == before
    for kind in ("curl", "python"):
        page.click(f"[data-copy={kind}]")
        text = page.js("return document.querySelector('#copy-text').value")
        assert "quick*0.7 + lazy" in text and page.url in text
        if kind == "python":
            compile(text, "copied", "exec")
        page.click("#copy-dialog [data-close]")


def test_hostile_names_prompts_and_answers_are_text(refused):
    page = refused
    page.columns("quick", HOSTILE, prompt=HOSTILE)
    page.run()
    assert HOSTILE in page.text(".column:nth-child(2) .error")
    column = """
        const { Column } = await import("/studio/column.js");
        const one = new Column(given[0], { names: () => [given[0]], changed() {}, removed() {}, referred() {} });
        one.place(0, true); one.offer(); one.start();
        one.append(given[0], 1); one.finish({ finish_reason: "stop" }); one.compare("");
        document.getElementById("columns").append(one.element);
        return [one.answer.textContent, one.element.querySelectorAll("img, script").length];
    """
    assert page.later(column, HOSTILE) == [HOSTILE, 0]
    page.open(f"anatomy?model={HOSTILE}")
    page.until(lambda: bool(page.text("#anatomy-result.error")))
    injected = page.js("try { document.body.innerHTML = '<p>x</p>'; return 'ran' } catch (error) { return error.name }")
    assert injected == "TypeError" and page.driver.title == "roadkit Studio"
    assert ["TrustedHTML" in text for text in page.complaints(refused=True)] == [True]


def test_an_upload_that_fails_says_why_and_one_that_succeeds_is_served(refused, studio, made, tmp_path):
    page = refused
    page.open("adapters")
    page.until(lambda: len(page.all("#adapter-table tbody tr")) == 2)
    broken = tmp_path / "adapter_model.safetensors"
    broken.write_bytes((made(3) / "adapter_model.safetensors").read_bytes()[:-50])
    page.click("#upload button[type=submit]")
    assert "adapter_config.json and adapter_model.safetensors are missing" in page.text("#upload-result")
    field = page.one("#upload-files")
    field.send_keys(f"{made(3) / 'adapter_config.json'}\n{broken}")
    page.fill("#upload-name", "fresh")
    page.click("#upload button[type=submit]")
    page.until(lambda: "adapter_model.safetensors" in page.text("#upload-result.error"))
    assert studio.http.get("/v1/adapters/fresh").status_code == 404
    field.send_keys(f"{made(3) / 'adapter_config.json'}\n{made(3) / 'adapter_model.safetensors'}")
    page.click("#upload button[type=submit]")
    page.until(lambda: page.text("#upload-result").startswith("fresh is served, version "))
    page.until(lambda: "fresh" in page.text("#adapter-table"))
    assert chatted(studio, "fresh") != chatted(studio, "")

    page.fill("#compose-expression", "fresh*0.5 + quick")
    page.fill("#compose-name", "frozen")
    page.click("#compose button[type=submit]")
    page.until(lambda: page.text("#compose-result").startswith("frozen is served"))
    assert chatted(studio, "frozen") == chatted(studio, "fresh*0.5 + quick")

    for name in ("fresh", "frozen"):
        page.until(lambda name=name: bool(page.all(f"[aria-label='Delete {name}']")))
        page.click(f"[aria-label='Delete {name}']")
        assert page.text("#delete-name") == name
        page.click("#delete-dialog [data-close]")
        assert studio.http.get(f"/v1/adapters/{name}").status_code == 200
        page.click(f"[aria-label='Delete {name}']")
        page.click("#delete-confirm")
        page.until(lambda name=name: not page.all(f"[aria-label='Delete {name}']"))
        assert studio.http.get(f"/v1/adapters/{name}").status_code == 404


def test_files_can_be_dropped_and_the_table_is_live(page, studio, made):
    page.open("adapters")
    drop = """
        const transfer = new DataTransfer();
        for (const name of ["adapter_config.json", "adapter_model.safetensors"]) transfer.items.add(new File(["{}"], name));
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    """
    page.js(drop)
    page.until(lambda: "adapter_model.safetensors (1 kB)" in page.text("#upload-chosen"))
    assert studio.upload("elsewhere", made(4)).status_code == 201
    page.until(lambda: "elsewhere" in page.text("#adapter-table"))
    page.fill("#adapter-filter", "ELSE")
    assert len(page.all("#adapter-table tbody tr")) == 1
    studio.http.delete("/v1/adapters/elsewhere")
    page.until(lambda: "No name contains this." in page.text("#adapter-table"))


def test_anatomy_shows_the_blocks_that_are_served(page, made):
    page.open("anatomy?model=quick")
    page.until(lambda: bool(page.all("#angle-map button")))
    adapter = Adapter.load(made(1))
    assert len(page.all("#angle-map button")) == len(page.all("#scale-map button")) == len(adapter.layout.layers)
    page.click("#angle-map [aria-label^='layer 1, self_attn.q_proj']")
    layer = "model.layers.1.self_attn.q_proj"
    page.until(lambda: page.text("#layer-name") == layer)
    for strength in (1, -0.5):
        page.fill("#strength", strength)
        page.fill("#pair", 9)
        block = pairs(adapter, layer, strength=strength)["blocks"][9]
        expected = [f"{value:.4f}".replace("-", "−") for value in block]
        page.until(lambda expected=expected: page.texts("#matrix .cells span") == expected)
    assert "outputs 17 and 25" in page.text("#pair-facts")
    dots = page.js("return document.querySelector('.polar .dots').getAttribute('d').split('M').length - 1")
    assert dots == len(pairs(adapter, layer)["blocks"])
    page.fill("#anatomy-model", "quick*0.5 + lazy")
    page.click("#dissect button")
    page.until(lambda: page.text("#anatomy-result").startswith("computed · "))


def test_heatmaps_are_walked_with_the_arrow_keys(page):
    page.open("anatomy?model=quick")
    page.until(lambda: bool(page.all("#angle-map button[tabindex='0']")))
    page.click("#angle-map [aria-label^='layer 0, self_attn.q_proj']")
    keys = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))"
    for key in ("ArrowRight", "ArrowDown"):
        page.js(keys, key)
    label = page.js("return document.activeElement.getAttribute('aria-label')")
    assert label.startswith("layer 1, self_attn.k_proj") and len(page.all("#angle-map [tabindex='0']")) == 1


def test_load_shows_what_runs(page, studio):
    page.open("load")
    seen = threading.Event()

    def keep_busy(model: str) -> None:  # one answer is over before the page looks again, on a fast machine
        body = {"model": model, "prompt": "the", "max_tokens": 900, "ignore_eos": True}
        while not seen.is_set():
            httpx.post(f"{studio.url}/v1/completions", json=body, timeout=60).raise_for_status()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        busy = [pool.submit(keep_busy, model) for model in ("quick", "lazy")]
        try:
            page.until(lambda: page.texts(".chart strong")[1:3] == ["2", "2"])
            page.until(lambda: float(page.texts(".chart strong")[0]) > 0)
        finally:
            seen.set()
        assert not [error for task in busy if (error := task.exception())]
    page.until(lambda: "quick" in page.text("#rates") and "lazy" in page.text("#rates"))


def test_nothing_works_without_the_key(driver, start, made, tmp_path):
    text, key = new_key("ci", tenant="acme", admin=True)
    keys = tmp_path / "keys.json"
    Keyring((key,)).save(keys)
    server = start("--keys", str(keys), "--adapters", f"quick={made(1)}", key=text)
    page = Page(driver, server.url)
    driver.get(f"{server.url}/studio")
    page.until(lambda: page.js("return document.querySelector('#key-dialog').open"))
    assert not page.text("#model") and not page.all(".column")
    page.one("#key").send_keys("rk-wrong")
    page.click("#key-form button")
    page.until(lambda: "incorrect API key" in page.text("#key-error"))
    page.one("#key").send_keys(text)
    page.click("#key-form button")
    page.until(lambda: len(page.all(".column")) > 1)
    assert page.run()[0]
    stored = "JSON.stringify({...localStorage, ...sessionStorage}), document.cookie, location.href"
    kept = page.js(f"return [{stored}, document.documentElement.outerHTML].join()")
    assert text not in kept
    page.click("[data-copy=python]")
    assert text not in page.js("return document.querySelector('#copy-text').value")
    driver.refresh()
    page.until(lambda: page.js("return document.querySelector('#key-dialog').open"))
    assert page.complaints(refused=True) == []
    server.stop()


@pytest.mark.parametrize("width", [380, 768, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_panel_fits_and_follows_the_scheme(page, width, scheme):
    page.resize(width, 900)
    page.scheme(scheme)
    for panel in PANELS:
        page.open(panel)
        overflow = page.js("return document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, f"{panel} is {overflow} pixels too wide at {width}"
        colour = page.js("return getComputedStyle(document.documentElement).backgroundColor")
        red = int(re.findall(r"\d+", colour)[0])
        assert (red > 200) == (scheme == "light")
    page.click("#theme")  # light, whatever the system says
    assert page.js("return getComputedStyle(document.documentElement).colorScheme") == "light"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(page, scheme):
    if not AXE.exists():
        pytest.skip(f"no axe-core at {AXE}; `make test-studio` installs it")
    page.scheme(scheme)
    for panel in PANELS:
        page.open(panel)
        if panel == "playground":
            page.columns("quick", "lazy + quick")
            page.run()
        if panel.startswith("anatomy"):
            page.until(lambda: bool(page.all("#matrix .cells span")))
        assert page.accessible() == [], panel
    page.open("playground")
    page.click("[data-copy=curl]")
    assert page.accessible() == []


@pytest.mark.parametrize("name", ["playground-light", "playground-dark", "anatomy-light", "narrow-dark"])
def test_looks_as_its_reference_picture(driver, start, made, name):
    server = start("--adapters", f"quick={made(1)}", "--adapters", f"lazy={made(2)}")
    page = Page(driver, server.url)
    page.scheme(name.rpartition("-")[2])
    if name.startswith("narrow"):
        page.resize(380, 800)
    if name.startswith("anatomy"):
        page.open("anatomy?model=quick")
        page.until(lambda: bool(page.all("#matrix .cells span")))
    else:
        page.columns(*EIGHT)
    page.js("document.activeElement?.blur()")
    assert page.differs(name) < 6
    server.stop()


def test_first_paint_size_and_responsiveness(page, capsys):
    """Measured and printed; only the size is a fact of the code."""
    page.columns(*EIGHT, tokens=400)
    paint = page.js("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    sizes = """
        const loaded = [...performance.getEntriesByType("resource"), ...performance.getEntriesByType("navigation")];
        return loaded.reduce((sum, one) => sum + one.encodedBodySize, 0);
    """
    transferred = page.js(sizes)
    assert 10_000 < transferred < 500_000
    watch = """
        window.tasks = [];
        const add = (list) => window.tasks.push(...list.getEntries().map((one) => Math.round(one.duration)));
        new PerformanceObserver(add).observe({ type: "longtask" });
    """
    page.js(watch)
    page.run()
    figures = {
        "first_paint_ms": round(paint),
        "transferred_bytes": transferred,
        "tasks_over_50_ms": page.js("return window.tasks"),
        "status": page.text("#run-status"),
    }
    show(capsys, figures)


@pytest.mark.slow
@pytest.mark.model
def test_on_smollm2(driver, start, tmp_path, capsys):
    widths = {"self_attn": {"q_proj": 576, "k_proj": 192, "v_proj": 192, "o_proj": 576}}
    widths["mlp"] = {"gate_proj": 1536, "up_proj": 1536, "down_proj": 576}
    layers = {
        f"model.layers.{i}.{part}.{name}": width
        for i in range(30)
        for part, names in widths.items()
        for name, width in names.items()
    }
    for seed, name in enumerate(("left", "right")):
        torch.manual_seed(seed)
        parameters = {
            layer: (0.1 * torch.randn(width // 2), 1 + 0.02 * torch.randn(width // 2))
            for layer, width in layers.items()
        }
        Adapter.from_parameters(parameters, variant="road_1", group_size=64).save(tmp_path / name)
    server = start("--adapters", str(tmp_path), "--max-batch", "8", "--cache-gib", "0.25", model="smollm2")
    page = Page(driver, server.url)
    page.columns(
        "",
        "left",
        "right",
        "left*0.5",
        "-left",
        "left + right",
        "left*0.3",
        "right*0.5",
        prompt="What is the capital of Italy?",
        tokens=16,
    )
    page.click("#run")
    page.until(lambda: page.js("return document.querySelector('#stop').disabled"), seconds=300)
    assert all(page.texts(".answer")) and "8 at once in one batch" in page.text("#run-status")
    status = page.text("#run-status")
    page.open("anatomy?model=left")
    page.until(lambda: len(page.all("#angle-map button")) == 210)
    drawn = page.js("return performance.getEntriesByName('heatmap')[0].duration")
    show(capsys, {"heatmap_ms": round(drawn, 1), "status": status})
    assert page.complaints() == []
    server.stop()
