"""The report's page in a real browser: one page of one browser, which every test leaves as it found it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablation.analysis.pooling import analyse_study
from ablation.reporting.report import Report, build_report
from tests.browser import CHROMIUM
from tests.fake_results import FOUR, TWO_BY_TWO, fake_result
from tests.reporting.test_data_section import comparison, with_images

pytest.importorskip("playwright", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

from playwright.sync_api import Browser, Error, Page, sync_playwright  # noqa: E402 - skipped without it

SERVER = "http://127.0.0.1:9"  # where nothing answers
WIDTH, HEIGHT = 1280, 900
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
OPEN_ALL = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"
CLOSE_ALL = "document.querySelectorAll('details').forEach((part) => { part.open = false; })"


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(analyse_study(fake_result(TWO_BY_TWO, FOUR, name="cuts")), SERVER)


@pytest.fixture(scope="module")
def address(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report.html)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        except Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def heard() -> list[str]:
    """What the page requested, and its messages on the console."""
    return []


@pytest.fixture(scope="module")
def opened(browser: Browser, address: str, heard: list[str]) -> Page:
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("request", lambda request: heard.append(request.url))
    page.on("console", lambda message: heard.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.goto(address)
    page.wait_for_selector('[data-chart="arms"].is-live')
    return page


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    yield opened
    opened.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    opened.emulate_media(media="screen", color_scheme="light")
    opened.evaluate(CLOSE_ALL)
    opened.evaluate("scrollTo(0, 0)")


def settle(page: Page) -> None:
    """Scroll once over the page, and wait until its plots are drawn."""
    page.evaluate(
        "async () => { for (let y = 0; y < document.body.scrollHeight; y += 600) {"
        "scrollTo(0, y); await new Promise((next) => setTimeout(next, 20)); } scrollTo(0, 0); }"
    )
    page.wait_for_timeout(700)


def test_the_first_screen_answers(page: Page, report: Report) -> None:
    """Question, answer, the plot that shows it, the champion and its use."""
    parts = [
        page.get_by_role("heading", level=1),
        page.locator(".answer"),
        page.locator('[data-chart="arms"] .live svg'),
        page.get_by_text("is the champion"),
        page.locator("pre", has_text="python -m ablation.predict cuts IMAGE..."),
    ]
    for part in parts:
        box = part.bounding_box()
        assert box is not None
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= HEIGHT
    assert parts[0].inner_text() == report.analysis.result.spec.question
    assert parts[1].inner_text().split() == report.analysis.answer.split()


def test_hovering_says_the_values(page: Page, report: Report) -> None:
    page.locator('[data-chart="arms"] .live .mark-symbol path').first.hover()
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    arm = report.analysis.result.arms[0]
    text = tooltip.inner_text()
    assert arm.arm.name in text
    assert f"{arm.test_accuracies_S.mean():.4f}" in text
    page.mouse.move(1, 1)


def labels(page: Page, chart: str) -> list[str]:
    texts = page.locator(f'[data-chart="{chart}"] .live .role-axis-label text').all_text_contents()
    return [text.removesuffix(" \u2605 champion") for text in texts if "," in text]


def test_arms_and_levels_are_toggled(page: Page) -> None:
    """By boxes, for all plots; and by a legend."""
    every = labels(page, "arms")
    assert len(every) == 4
    page.get_by_text("Choose the arms in the plots").click()
    page.get_by_role("checkbox", name="block5", exact=True).uncheck()
    page.wait_for_timeout(200)
    assert labels(page, "arms") == ["block3,feature_extraction", "block3,fine_tune_all"]
    assert page.get_by_role("checkbox", name="block5,fine_tune_all").is_checked() is False
    mixed = page.get_by_role("checkbox", name="fine_tune_all", exact=True)
    assert mixed.evaluate("(box) => box.indeterminate")
    settle(page)
    legend = page.locator('[data-chart="curves"] .live .role-legend-label text')
    assert legend.all_text_contents() == ["block3", "block5 (hidden)", "feature_extraction", "fine_tune_all"]
    legend.nth(1).click()
    page.wait_for_timeout(200)
    assert labels(page, "arms") == every
    assert page.get_by_role("checkbox", name="block5", exact=True).is_checked()


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"#arms tbody tr td:nth-child({number})").all_inner_texts()


def test_tables_are_sorted_by_their_heads(page: Page) -> None:
    """By a click and by the keyboard; the state is announced."""
    before, accuracies = column(page, 1), [float(text) for text in column(page, 3)]
    head = page.locator("#arms thead th").nth(2)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in column(page, 3)] == sorted(accuracies)
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in column(page, 3)] == sorted(accuracies, reverse=True)
    page.locator("#arms thead th").first.get_by_role("button").click()
    assert column(page, 1) == sorted(before)
    assert head.get_attribute("aria-sort") is None


def test_tables_are_filtered_by_words(page: Page) -> None:
    page.evaluate(OPEN_ALL)
    box = page.get_by_role("searchbox", name="Best trials and confirmation runs")
    rows = page.get_by_role("region", name="Best trials and confirmation runs").locator("tbody tr")
    box.fill("BLOCK3 fine_tune confirmation")
    assert rows.filter(visible=True).count() == 3
    assert page.get_by_role("status").filter(has_text="3 of 16 rows").count() == 1
    box.fill("")
    assert rows.filter(visible=True).count() == 16


def test_the_explorer_shows_the_runs_of_an_arm(page: Page) -> None:
    explorer = page.locator(".explorer")
    explorer.scroll_into_view_if_needed()
    lines = explorer.locator(".live .mark-line path")
    lines.first.wait_for()
    explorer.get_by_label("Arm").select_option("block5,fine_tune_all")
    explorer.get_by_label("Metric").select_option("loss")
    page.wait_for_function("document.querySelector('.explorer .live').textContent.includes('loss (nats)')")
    assert lines.count() == 6  # training and validation of three seeds
    assert "loss" in str(explorer.locator(".chart").get_attribute("aria-label"))
    assert "block5,fine_tune_all" in str(explorer.locator(".chart").get_attribute("aria-label"))


def test_a_cell_of_the_confusion_matrix_leads_to_its_images(page: Page) -> None:
    link = page.locator("td.shade a").first
    true, predicted = link.get_attribute("data-true"), link.get_attribute("data-predicted")
    link.click()
    chosen = page.locator(".gallery li.is-chosen")
    assert chosen.count() > 0
    for tile in chosen.all():
        assert (tile.get_attribute("data-true"), tile.get_attribute("data-predicted")) == (true, predicted)
    box = chosen.first.bounding_box()
    assert box is not None
    assert 0 <= box["y"] < HEIGHT


def test_every_command_can_be_copied(page: Page) -> None:
    page.evaluate(OPEN_ALL)
    assert page.locator(".command button").count() == page.locator("pre").count()
    page.locator(".command button").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "python -m ablation.predict cuts IMAGE..."


def test_a_link_opens_what_is_folded(page: Page) -> None:
    page.get_by_role("link", name="Environment").click()
    page.locator("#environment h3").first.wait_for()
    assert page.locator("#environment").is_visible()


def test_arms_are_linked_to_their_runs(page: Page, report: Report) -> None:
    links = [str(link.get_attribute("href")) for link in page.locator("#arms td a").all()]
    start = f"{SERVER}/#/experiments/7/runs?workflowType=machine_learning&searchFilter=tags.arm%20%3D%20%27"
    assert sorted(links) == sorted(
        f"{start}{arm.arm.name.replace(',', '%2C')}%27" for arm in report.analysis.result.arms
    )
    assert page.evaluate("document.querySelectorAll('#arms a').length") == 4


@pytest.mark.parametrize("width", [360, 768, 2000])
def test_nothing_overflows(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    page.evaluate(OPEN_ALL)
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    too_wide = "[...document.querySelectorAll('.live svg')].filter((e) => e.getBoundingClientRect().right > innerWidth)"
    assert page.evaluate(f"{too_wide}.map((e) => e.closest('.chart').dataset.chart)") == []
    smallest = (
        "Math.min(...[...document.querySelectorAll('.live text')].map((e) => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert page.evaluate(smallest) >= 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, scheme: str) -> None:
    """With all that is folded opened."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.evaluate(OPEN_ALL)
    settle(page)
    rules = RULES if scheme == "light" else ["color-contrast"]  # the others do not depend on it
    found = axe.Axe().run(page, options={"runOnly": rules}).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in found] == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is (scheme == "light")
    text = page.locator('[data-chart="arms"] .live text').first.evaluate("(e) => getComputedStyle(e).fill")
    assert text == page.evaluate("getComputedStyle(document.body).color")


def test_print_shows_all(page: Page) -> None:
    """Folded parts, rows that a filter hides, and the static plots."""
    page.evaluate("document.querySelector('#arms tbody tr').hidden = true")
    page.emulate_media(media="print")
    assert page.evaluate("document.querySelector('#arms tbody tr').getBoundingClientRect().height") > 0
    page.evaluate("document.querySelector('#arms tbody tr').hidden = false")
    unseen = (
        "[...document.querySelectorAll('table, .static.large svg')].filter((e) => !e.getBoundingClientRect().height)"
    )
    assert page.evaluate(f"{unseen}.length") == 0
    assert page.evaluate("getComputedStyle(document.querySelector('.live')).display") == "none"
    pdf = page.pdf(format="A4")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") > 3


def test_without_scripts_the_page_is_complete(browser: Browser, address: str, report: Report) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator(".answer").inner_text().split() == report.analysis.answer.split()
    assert page.locator('[data-chart="arms"] .static.small svg').is_visible()
    assert not page.locator('[data-chart="arms"] .static.large svg').is_visible()
    text = page.locator('[data-chart="arms"] .static.small').inner_text()
    assert all(arm.arm.name in text for arm in report.analysis.result.arms)
    page.locator("summary", has_text="Environment").click()
    assert page.locator("#environment").is_visible()
    assert page.locator(".filter, .controls").count() == 0
    context.close()


def test_long_names_neither_overflow_nor_lose_their_click(browser: Browser, tmp_path: Path) -> None:
    """Names that the legend cuts, on a telephone."""
    names = [f"arm {number} {'x' * 90}" for number in (3, 5)]
    arms = [{"name": name, "truncate_at": f"block{name[4]}"} for name in names]
    path = tmp_path / "report.html"
    path.write_text(
        build_report(analyse_study(fake_result({}, dict(zip(names, (0.8, 0.7), strict=True)), arms=arms))).html
    )
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(path.as_uri())
    page.evaluate(OPEN_ALL)
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    rows = page.locator('[data-chart="arms"] .live .role-axis-label text', has_text="arm ")
    assert rows.count() == 2
    page.locator('[data-chart="curves"] .live .role-legend-label text').first.click()
    page.wait_for_timeout(200)
    assert [text[:5] for text in rows.all_text_contents()] == ["arm 5"]
    page.close()


def test_a_telephone_has_the_sheet_at_its_size_and_triangles_beside_their_headings(
    browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(build_report(analyse_study(with_images(comparison(0)))).html)
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(path.as_uri())
    page.evaluate(OPEN_ALL)
    assert page.locator(".sheet").evaluate("(image) => image.getBoundingClientRect().width") == 640
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    heading = page.locator("summary h2", has_text="Near-duplicates across training and test")
    assert heading.evaluate("(e) => e.getClientRects().length") == 2  # wraps behind the triangle, not below it
    page.close()


def test_nothing_is_requested_and_no_error_is_shown(page: Page, address: str, heard: list[str]) -> None:
    """The last test of the page, after all others have used it."""
    settle(page)
    outside = [line for line in heard if not line.startswith((address, "data:"))]
    assert outside == []
    assert json.loads(str(page.locator("#report-data").text_content()))["arms"]
    assert not re.search(r"https?://(?!www\.w3\.org|127\.0\.0\.1)", page.locator("main").inner_html())
