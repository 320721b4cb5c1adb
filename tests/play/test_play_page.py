"""The page in a real browser: headless Chromium, driven by playwright."""

import re
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CONTRAST = """() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                       return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
                        if (c.length < 4 || c[3] > 0.99) return c.slice(0, 3); } return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll('.play *, label span, button, textarea')) {
    const text = [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()) || e.tagName == 'TEXTAREA';
    if (!text || !e.offsetParent) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color).slice(0, 3)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${e.textContent.trim().slice(0, 40)}: ${ratio.toFixed(1)}`);
  }
  return low;
}"""


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio", reason="the page needs the extra [play]")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def address(browser, skipdit, monkeypatch):
    """The address of the page of the embedded digits, with few steps."""
    from skipdit_cli.play import serve

    started = []
    monkeypatch.setattr(serve, "serve", lambda page, port, *rest: started.append((page, serve.start(page, port))))
    outcome = skipdit("play", "--steps", 12, "--no-open")
    assert outcome.code == 0, outcome.stderr
    (page, url), = started  # fmt: skip
    yield url
    page.close(verbose=False)


@pytest.fixture
def visit(browser, address):
    """``visit(width, scheme)`` opens the page; returns it, its console errors, and the addresses that it loads."""

    def open_page(width, scheme):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        complaints, requests = [], []
        page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("#pictures img")
        return page, complaints, requests

    return open_page


def test_the_page_in_a_browser(visit, address):
    from playwright.sync_api import expect

    for width, scheme in ((1280, "light"), (400, "dark")):
        page, complaints, requests = visit(width, scheme)
        command = page.locator("#command textarea")
        before = command.input_value()
        assert before.startswith("skipdit sample --preset digits ") and " --class-labels 0 " in before
        page.get_by_role("slider").focus()
        page.keyboard.press("End")
        expect(command).not_to_have_value(before)
        expect(page.locator("#numbers")).to_contain_text("12.0 times", timeout=30_000)
        assert "--full-steps 0, " in command.input_value()
        assert page.locator("svg.steps").first.get_attribute("aria-label") == "1 of 12 steps are full: 0"
        assert page.locator("#pictures img").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing scrolls sideways"
        assert page.evaluate(CONTRAST) == []
        assert not complaints
        assert requests and all(re.match(rf"{address}/|data:", url) for url in requests), requests
        page.close()
