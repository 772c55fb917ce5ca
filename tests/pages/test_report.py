"""Report in a browser: wide and narrow, light and dark, by eye, keyboard and screen reader."""

import pytest

SIZES = {"wide": 1400, "phone": 390}  # [px]

# Text whose contrast with what lies behind it is below WCAG's 4.5, or 3 where it is large.
FAINT = """() => {
  const parse = c => [...c.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c.slice(0, 3); }
    return matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0] : [255, 255, 255]; };
  const faint = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !element.getClientRects().length || element.tagName === 'title') continue;
    const style = getComputedStyle(element), svg = element.closest('svg');
    const [a, b] = [parse(svg ? style.fill : style.color).slice(0, 3), ground(element)]
      .map(light).sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.7 && style.fontWeight >= 700);
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) faint.push([text, (a + 0.05) / (b + 0.05)]);
  }
  return faint;
}"""

# Scrolled to its end, each wide region shows its last column.
HIDDEN = """() => [...document.querySelectorAll('.wide')].filter(region => {
  region.scrollLeft = 1e6;
  const edge = region.getBoundingClientRect().right + 1;
  const ends = [...region.querySelectorAll('th:last-child, td:last-child, svg')];
  const hidden = ends.some(end => end.getBoundingClientRect().right > edge);
  region.scrollLeft = 0;
  return hidden;
}).map(region => region.getAttribute('aria-label'))"""

NAMELESS = """() => [
  ...[...document.images].filter(image => !image.alt || !image.complete || !image.naturalWidth),
  ...[...document.querySelectorAll('svg')].filter(svg => svg.getAttribute('role') !== 'img' ||
    !document.getElementById(svg.getAttribute('aria-labelledby'))?.textContent),
].map(element => element.outerHTML.slice(0, 80))"""


@pytest.fixture(params=SIZES)
def width(request):
    """Edge of the window [px]."""
    return SIZES[request.param]


@pytest.fixture(params=["light", "dark"])
def page(browser, report, width, request):
    """Open the report with everything unfolded; note what it asks for and complains of."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=request.param, offline=True
    )
    opened = context.new_page()
    opened.requests, opened.complaints = [], []
    opened.on("request", lambda one: opened.requests.append(one.url))
    opened.on("console", lambda one: opened.complaints.append(one.text))
    opened.on("pageerror", lambda one: opened.complaints.append(str(one)))
    opened.goto(report.as_uri())
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    yield opened
    context.close()


def test_a_page_is_whole_in_a_browser(page, report, width):
    """It fits its window, all on it has a name and can be read, and nothing else is asked for."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(FAINT) == []
    assert page.evaluate(HIDDEN) == []
    others = [url for url in page.requests if not url.startswith("data:image/png;base64,")]
    assert others == [report.as_uri()]
    assert page.complaints == []


def test_what_scrolls_is_reached_by_keyboard(page):
    """Tab visits each wide region, and the arrow keys move one that is wider than the window."""
    labels = page.evaluate("[...document.querySelectorAll('.wide')].map(e => e.ariaLabel)")
    met, count = [], page.evaluate("document.querySelectorAll('[tabindex], a, summary').length")
    for _ in range(count):
        page.keyboard.press("Tab")
        label = page.evaluate("document.activeElement.ariaLabel")
        met.append(label)
        if label == "Gains as dots":
            room = page.evaluate(
                "document.activeElement.scrollWidth - document.activeElement.clientWidth"
            )
            page.keyboard.press("ArrowRight")
            if room > 0:
                page.wait_for_function("document.activeElement.scrollLeft > 0")
    assert set(labels) <= set(met)
