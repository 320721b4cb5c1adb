"""A report in a real browser: wide and narrow, light and dark, and from the keyboard."""

import shutil

import pytest

from skipdit_cli.reports import save
from tests.support.small_report import small_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OVERFLOWING = """() => [...document.querySelectorAll("body *")]
  .filter((e) => e.children.length === 0 && e.textContent.trim() && e.checkVisibility())
  .filter((e) => !e.closest(".scroll, noscript"))
  .filter((e) => !["OPTION", "TITLE", "SCRIPT"].includes(e.tagName) && !e.matches(".jump"))
  .filter((e) => {
    const box = e.getBoundingClientRect();
    const inSvg = e.ownerSVGElement;
    const outside = box.left < -0.5 || box.right > innerWidth + 0.5;
    return outside || (!inSvg && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline");
  }).map((e) => `${e.tagName} ${e.textContent.slice(0, 40)}`)"""
OVERLAPPING = """() => {
  const chart = [...document.querySelectorAll("svg.chart")].find((e) => e.checkVisibility());
  const boxes = [...chart.querySelectorAll(".label")].map((e) => [e.textContent, e.getBoundingClientRect()]);
  return boxes.flatMap(([name, a], at) => boxes.slice(at + 1)
    .filter(([, b]) => a.left < b.right && b.left < a.right && a.top + 2 < b.bottom - 2 && b.top + 2 < a.bottom - 2)
    .map(([other]) => `${name} / ${other}`));
}"""
LOW_CONTRAST = """() => {
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = (rgb) => rgb.map((c) => linear(c / 255))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .filter((e) => !["SCRIPT", "NOSCRIPT", "OPTION", "TITLE"].includes(e.tagName))
    .map((e) => {
      const style = getComputedStyle(e);
      const text = luminance(parse(e.ownerSVGElement ? style.fill : style.color).slice(0, 3));
      const [high, low] = [text, luminance(ground(e))].sort((a, b) => b - a);
      return [(high + 0.05) / (low + 0.05), e.textContent.trim().slice(0, 40)];
    }).filter(([value]) => value < 4.5);
}"""
PICTURE = """() => [...document.querySelectorAll("#left-picture, #right-picture, #difference")]
  .map((canvas) => canvas.toDataURL())"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_report_in_chromium(tmp_path):
    from playwright.sync_api import expect, sync_playwright

    save(small_report(frames=3), tmp_path / "report.html")
    messages, requests = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for width in (1280, 400):
            for scheme in ("light", "dark"):
                view = {"width": width, "height": 900}
                page = browser.new_page(viewport=view, color_scheme=scheme, reduced_motion="reduce")
                page.on("console", lambda message: messages.append(message.text))
                page.on("pageerror", lambda error: messages.append(str(error)))
                page.on("request", lambda request: requests.append(request.url))
                page.goto((tmp_path / "report.html").as_uri())
                expect(page.locator("#pair-caption")).to_contain_text("PSNR")
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                for check in (OVERFLOWING, OVERLAPPING, LOW_CONTRAST):
                    assert page.evaluate(check) == [], f"at {width} pixels, {scheme}"
        check_keyboard(page)
        browser.close()
    assert messages == []
    assert all(url.startswith(("file:", "data:")) for url in requests)


def check_keyboard(page) -> None:
    """The divider, the rows, the samples and the frames are chosen without a mouse.

    What is waited for is asked by `expect`: the report's own policy forbids the `eval` that
    `wait_for_function` needs in the page from its second look on.
    """
    from playwright.sync_api import expect

    page.focus("#divider")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#divider") == "51"
    assert page.evaluate("document.querySelector('#frame').style.getPropertyValue('--at')") == "51%"
    before, caption = page.evaluate(PICTURE), page.inner_text("#pair-caption")
    page.focus("#right-row")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#pair-caption")).not_to_have_text(caption)  # written when the pictures are painted
    assert "samples differ" in page.inner_text("#status")
    after = page.evaluate(PICTURE)
    assert after[0] == before[0] and after[1] != before[1] and after[2] != before[2]
    distances = [float(text.split()[0]) for text in page.locator("#samples span:last-child").all_inner_texts()]
    assert distances == sorted(distances) and len(distances) == 5
    caption = page.inner_text("#pair-caption")
    page.focus("#samples li:last-child button")
    page.keyboard.press("Enter")
    expect(page.locator("#pair-caption")).not_to_have_text(caption)
    assert page.locator("#samples button[aria-pressed=true]").count() == 1
    page.focus("#frame-number")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#frame-text") == "2 of 3"
    page.focus(".copy")
    page.keyboard.press("Enter")
    expect(page.locator("#copied")).not_to_have_text("")
