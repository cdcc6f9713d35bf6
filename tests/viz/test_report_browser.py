"""The report in a real browser: what can be seen, moved, read and printed of it."""

import http.client
import re
import threading

import pytest
from browser_cases import local, opened
from exhaustive import EVERYTHING
from report_cases import HOSTILE, few_candidates, long_run, waves

from senn.cli.main import main
from senn.cli.watch import Watch
from senn.runs import read
from senn.viz.report import RunReport, page

pytestmark = pytest.mark.xdist_group("browser")

NONE = "\N{EN DASH}"


def state(tab):
    return tab.inner_text(".now")


def picture(tab):
    return tab.inner_html("svg.network")


def test_the_slider_moves_the_picture_and_tells_what_happened(single):
    start = single.evaluate("senn.stories[0].moments.length")
    shown = []
    for position in (0, start // 2, start - 1):
        single.evaluate(f"(() => {{ const s = document.getElementById('time'); s.value = {position};"
                        "s.dispatchEvent(new Event('input')); })()")  # fmt: skip
        shown.append(
            (picture(single), state(single), single.get_attribute("#time", "aria-valuetext"))
        )
    assert len({text for text, _, _ in shown}) == 3
    assert "The start" in shown[0][1]
    assert "Step 0, epoch 0" in shown[0][2]
    labels = re.findall(r'class="size">(\d+)<', shown[0][0])
    assert labels[1:-1] == ["3"]  # between input and output: what the run began with


def test_the_picture_shows_the_widths_of_the_records(single):
    run, _ = waves()
    sized = [one["architecture"] for one in run.history if one["event"] in ("start", "epoch")]
    moments = single.evaluate(
        "senn.stories[0].moments.filter((m) => m.kind !== 'round').map((m) => m.layers.map((l) => l.width))"
    )
    assert moments == sized
    final = [one for one in run.history if one["event"] == "growth"][-1]["architecture"]
    last_round = single.evaluate(
        "senn.stories[0].rounds.filter((r) => r.changes.length).pop().moment"
    )
    assert (
        single.evaluate(f"senn.stories[0].moments[{last_round}].layers.map((l) => l.width)")
        == final
    )


def test_play_runs_to_the_end_and_pauses(single):
    single.evaluate("senn.player.show(senn.player.steps.length - 3)")
    single.click("button.play")
    single.wait_for_function(
        "senn.player.position === senn.player.steps.length - 1 && !senn.player.playing",
        timeout=5000,
    )
    assert single.get_attribute("button.play", "aria-label") == "Play"


def test_keys_move_the_time_and_open_what_is_shut(single):
    single.evaluate("senn.player.show(4)")
    single.focus("#time")
    single.keyboard.press("ArrowLeft")
    assert single.evaluate("senn.player.position") == 3
    single.keyboard.press("Home")
    assert single.evaluate("senn.player.position") == 0
    single.focus("[aria-label='Next change of size']")
    single.keyboard.press("Enter")
    assert single.evaluate("senn.stories[0].moments[senn.player.position].round.changes.length") > 0
    single.focus("#round-1 summary")
    single.keyboard.press("Enter")
    single.wait_for_selector("#round-1 table", state="visible")
    single.keyboard.press("Enter")
    single.wait_for_selector("#round-1 table", state="hidden")


def test_a_round_lists_all_candidates_with_their_verdicts(single):
    run, _ = waves()
    records = [one for one in run.history if one["event"] == "growth_round"]
    assert single.locator(".rounds > li").count() == len(records)
    single.evaluate("location.hash = '#round-1'")
    single.wait_for_selector("#round-1 details[open]")
    rows = single.locator("#round-1 .scroll").last.locator("tbody tr")
    assert rows.count() == len(records[0]["accepted"]) + len(records[0]["refused"])
    assert single.locator("#round-1 tr.accepted").count() == len(records[0]["accepted"])
    best = records[0]["accepted"][0]
    assert best["place"] in rows.first.inner_text()
    assert f"{best['expected_decrease']:.3g}" in rows.first.inner_text()
    single.evaluate("document.querySelector('#round-1 details').open = false; location.hash = ''")


def test_links_lead_somewhere(single):
    dead = single.evaluate(
        "[...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))"
        ".filter((to) => !to.startsWith('#') || !document.getElementById(to.slice(1)))"
    )
    assert dead == []
    single.evaluate("senn.player.show(senn.stories[0].rounds[1].moment)")
    single.click("a.why")
    single.wait_for_selector("#round-2 details[open]")
    single.evaluate("senn.player.show(0)")
    single.click("#round-2 details >> text=Show in the picture")
    assert single.evaluate("senn.player.position === senn.stories[0].rounds[1].moment")


def test_a_curve_says_its_figures_and_sets_the_time(single):
    single.locator(".chart.loss .plot").scroll_into_view_if_needed()
    box = single.locator(".chart.loss .plot svg").bounding_box()
    single.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5)
    single.wait_for_selector("#vg-tooltip-element.visible")
    assert re.search(r"step\s*\d", single.inner_text("#vg-tooltip-element"))
    before = single.evaluate("senn.player.position")
    single.mouse.click(box["x"] + box["width"] * 0.95, box["y"] + box["height"] * 0.5)
    assert single.evaluate("senn.player.position") != before
    step = single.evaluate("senn.player.steps[senn.player.position]")
    assert single.evaluate("senn.drawn.get('loss').view.signal('at')") == step
    single.mouse.move(0, 0)


def test_every_chart_has_a_table_of_its_data(single):
    keys = single.evaluate("[...senn.drawn.keys()]")
    assert keys == [
        "loss",
        "score",
        "widths",
        "parameters",
        "flops",
        "eta",
        "decreases",
        "frontier",
    ]
    for key in keys:
        rows = single.evaluate(
            "(key) => { const t = senn.drawn.get(key).table; t.open = true; t.refresh();"
            "const n = t.querySelectorAll('tbody tr').length; t.open = false; return n; }",
            key,
        )
        assert rows == single.evaluate(f"senn.drawn.get('{key}').chart.rows.length") > 0


def test_rounds_can_be_filtered(single):
    single.select_option("#filter", "nothing")
    run, _ = waves()
    rounds = [one for one in run.history if one["event"] == "growth_round"]
    idle = len(rounds) - len({one["round"] for one in run.history if one["event"] == "growth"})
    rolled = single.evaluate(
        "senn.stories[0].rounds.filter((r) => !r.changes.length && r.rollbacks.length).length"
    )
    assert single.locator(".rounds > li:visible").count() == idle - rolled
    single.select_option("#filter", "all")


def test_names_that_are_markup_are_text(browser, pages):
    with opened(browser, local(pages, "hostile")) as tab:
        tab.evaluate("openAll(document.querySelector('main'))")
        assert tab.evaluate("window.hacked") is None
        assert tab.evaluate("document.querySelectorAll('main img').length") == 0
        assert tab.evaluate("document.querySelector('h1').textContent") == HOSTILE
        assert tab.evaluate("document.querySelector('code').textContent") == HOSTILE
        tab.locator(".chart.eta .plot").scroll_into_view_if_needed()
        box = tab.locator(".chart.eta .plot svg").bounding_box()
        tab.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6)
        tab.wait_for_selector("#vg-tooltip-element.visible")
        assert "<script>" in tab.inner_text("#vg-tooltip-element")
        assert tab.evaluate("window.hacked") is None
        assert fits_a_phone(tab)


@pytest.mark.parametrize("name", ["pictures", "short two"])
def test_axe_finds_nothing(browser, pages, name):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # one chart and its table stand for all, which one function draws: they are most of a page's elements
    one_chart = {"exclude": [[".plot svg"], [".chart:not(.loss) details"]]}
    with opened(browser, local(pages, name)) as tab:
        tab.evaluate("openAll(document.querySelector('main'))")
        every = [axe.run(tab, context=one_chart)]
        if name == "pictures":
            every.append(axe.run(tab, context={"include": [[".chart.loss .plot svg"]]}))
            tab.emulate_media(color_scheme="dark")
            contrast = {"runOnly": ["color-contrast"]}
            every.append(axe.run(tab, context=one_chart, options=contrast))
        for found in every:
            assert found.response["passes"]
            assert found.violations_count == 0, found.generate_report()


def test_the_theme_can_be_chosen(single):
    single.emulate_media(color_scheme="dark")
    color = "getComputedStyle(document.body).backgroundColor"
    dark = single.evaluate(color)
    single.click("#theme")
    assert single.inner_text("#theme") == "Theme: light"
    assert single.evaluate(color) != dark
    single.click("#theme")
    assert single.inner_text("#theme") == "Theme: dark"
    assert single.evaluate(color) == dark
    single.click("#theme")
    single.emulate_media(color_scheme="light")


def fits_a_phone(tab):
    """Whether a page needs no sideways scrolling there, all of it open; afterwards it is as it was."""
    usual = tab.viewport_size
    tab.set_viewport_size({"width": 360, "height": 740})
    shut = tab.evaluate_handle("openAll(document.querySelector('main'))")
    wide = tab.evaluate("document.documentElement.scrollWidth")
    tab.evaluate("(shut) => { for (const box of shut) box.open = false; }", shut)
    tab.set_viewport_size(usual)
    return wide <= 360


def test_a_phone_needs_no_sideways_scrolling(single):
    assert fits_a_phone(single)


def test_on_paper_all_is_there_and_light_and_fits(single):
    single.emulate_media(color_scheme="dark")
    run, _ = waves()
    before = single.evaluate(
        "[senn.drawn.get('loss').view.width(), document.querySelectorAll('details[open]').length]"
    )
    single.evaluate(
        "addEventListener('beforeprint', () => { window.paper = {"
        " shut: [...document.querySelectorAll('main details:not([open])')].filter((d) => !d.closest('.chart, .list')),"
        " rounds: [...document.querySelectorAll('table.paper .said')].map((row) => row.textContent),"
        " taken: [...document.querySelectorAll('table.paper tbody')]"
        "   .map((body) => body.querySelectorAll('.accepted').length),"
        " pictures: document.querySelectorAll('.strip svg.network').length,"
        " wide: Math.max(...[...senn.drawn.values()].map((chart) => chart.view.width())) }; })"
    )
    pdf = single.pdf(format="A4", print_background=False)
    assert pdf.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8
    paper = single.evaluate("window.paper")
    assert paper["shut"] == []
    considered = [one for one in run.history if one["event"] == "growth_round"]
    assert len(paper["rounds"]) == len(considered)
    for said, one in zip(paper["rounds"], considered, strict=True):
        assert said.startswith(f"Step {one['step']:,} ")
    grown = [one["round"] for one in run.history if one["event"] == "growth"]
    assert paper["taken"] == [grown.count(one["round"]) for one in considered]
    assert 3 <= paper["pictures"] <= 8
    assert paper["wide"] <= 680  # of A4 with its margins
    assert single.locator("table.paper, .strip").count() == 0  # and the screen is as it was
    assert (
        single.evaluate(
            "[senn.drawn.get('loss').view.width(), document.querySelectorAll('details[open]').length]"
        )
        == before
    )
    single.evaluate("dispatchEvent(new Event('beforeprint'))")
    single.emulate_media(media="print")
    single.set_viewport_size({"width": 690, "height": 900})
    assert (
        single.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
    assert single.evaluate("document.documentElement.scrollWidth") <= 690
    # nor do the longest figures and names run over the edge
    single.evaluate(
        "for (const row of document.querySelectorAll('table.paper .accepted')) {"
        " const [, change, , ...figures] = row.cells; change.append('.in.a.module.of.a.module');"
        " const number = '\\u22120.000286';"
        " figures.slice(0, 4).forEach((cell, at) => { cell.textContent = number + (at ? '' : ' ± 0.00041'); }); }"
    )
    assert single.evaluate("document.documentElement.scrollWidth") <= 690
    assert single.locator(".chart details:visible, .list:visible, button:visible").count() == 0
    single.evaluate("dispatchEvent(new Event('afterprint'))")
    single.emulate_media(media="screen", color_scheme="light")
    single.set_viewport_size({"width": 1100, "height": 800})


def test_scores_stand_beside_intervals_baselines_classes_and_the_wrongest_images(browser, pages):
    with opened(browser, local(pages, "pictures")) as tab:
        lines = [row.split("\t") for row in tab.inner_text("table.scores >> nth=0").splitlines()]
        assert ["score", "network", "95 % interval", "majority guess", "linear model"] in lines
        assert ["accuracy", "0.7", "0.4 to 0.9", "0.5", "0.6"] in lines
        assert ["F1 of “cat”", "0.5", NONE, "0", NONE] in lines
        assert "The linear model is fitted to 5 of 20 rows" in tab.inner_text("#scores")
        cells = tab.locator("table.confusion .cell").all_inner_texts()
        assert cells == ["3", "1", "2", "4"]
        assert "cat\t12\t4\t75 %\t60 %" in tab.inner_text("table.classes")
        assert f"fold 1\t5\t0.8\t{NONE}\t30\t4" in tab.inner_text("table.scores >> nth=1")
        image = tab.locator(".wrongest img")
        assert image.count() == 1
        assert image.evaluate("image => image.complete && image.naturalWidth") == 1
        assert "3 test images of 10" in tab.inner_text("#scores")
        assert tab.evaluate("window.hacked") is None
        assert fits_a_phone(tab)


def test_numbers_are_drawn_against_the_truth(browser, pages):
    with opened(browser, local(pages, "numbers")) as tab:
        points = tab.locator("svg.pairs circle")
        assert points.count() == 3
        x, y = (
            points.evaluate_all(f"all => all.map((one) => +one.getAttribute('{name}'))")
            for name in ("cx", "cy")
        )
        assert x[2] < x[0] < x[1]
        assert y[2] > y[0] > y[1]
        assert fits_a_phone(tab)


def test_no_label_of_the_picture_is_cut_off_on_a_phone(browser, pages):
    """The size of the input, the longest label, stands at the edge."""
    with opened(browser, local(pages, "pictures"), viewport={"width": 390, "height": 800}) as tab:
        outside = tab.evaluate(
            "() => { const frame = document.querySelector('svg.network').getBoundingClientRect();"
            " return [...document.querySelectorAll('svg.network text')].filter((one) => {"
            "  const box = one.getBoundingClientRect();"
            "  return box.left < frame.left - 0.5 || box.right > frame.right + 0.5; }).map((one) => one.textContent); }"
        )
        assert outside == []


def test_runs_side_by_side(browser, pages):
    with opened(browser, local(pages, "two")) as tab:
        assert tab.inner_text("h1") == "2 runs compared"
        assert tab.locator("svg.network").count() == 2
        assert tab.locator("#figures tbody tr").count() == 2
        first = [tab.locator("svg.network").nth(at).inner_html() for at in (0, 1)]
        tab.evaluate("senn.player.show(0)")
        assert all(tab.locator("svg.network").nth(at).inner_html() != first[at] for at in (0, 1))
        assert {
            row["series"] for row in tab.evaluate("senn.drawn.get('loss').view.data('curve')")
        } == {
            "waves",
            "other",
        }
        assert fits_a_phone(tab)


def test_a_run_of_which_nothing_is_known_yet_is_a_page(browser, pages):
    with opened(browser, local(pages, "fixed")) as tab:
        assert "There was no round of growth." in tab.inner_text("#rounds")
        assert (
            tab.locator("#curves:visible, #filter:visible, nav a[href='#curves']:visible").count()
            == 0
        )
        assert "isn\N{RIGHT SINGLE QUOTATION MARK}t finished" in tab.inner_text("#about")


def test_a_long_run_opens_and_can_be_moved_through(browser, tmp_path):
    rounds = 250 if EVERYTHING else 80
    history = few_candidates(long_run(2 * rounds))
    (tmp_path / "long.html").write_text(page([RunReport("long", history)]), "utf-8")
    with opened(browser, (tmp_path / "long.html").as_uri()) as tab:
        assert tab.locator(".rounds > li").count() == rounds
        tab.evaluate(
            "for (let at = 0; at < senn.player.steps.length; at += 10) senn.player.show(at)"
        )
        assert tab.inner_text(".where").startswith("Step")


def test_watching_shows_records_as_they_come_and_stays_when_the_run_is_over(browser):
    run, _ = waves()
    lines = []
    with Watch("live", 0, lines.append) as watch:
        assert lines == [f"watch it at {watch.url}"]
        with opened(browser, watch.url) as tab:
            assert tab.inner_text("#live") == "Live: the run is in progress."
            half = len(run.history) // 2
            for record in run.history[:half]:
                getattr(watch, f"on_{record['event']}")(record)
            tab.wait_for_function(f"senn.stories[0].records.length === {half}")
            tab.wait_for_function(
                "senn.drawn.size >= 5 && document.querySelectorAll('.rounds > li').length > 0"
            )
            for record in run.history[half:]:
                getattr(watch, f"on_{record['event']}")(record)
            closing = threading.Thread(target=watch.close)
            closing.start()
            tab.wait_for_selector("#live.over")
            closing.join()
            assert "The run has ended" in tab.inner_text("#live")
            assert tab.evaluate("senn.stories[0].records.length") == len(run.history)
            realized = [one["realized_decrease"] for one in run.history if one["event"] == "growth"]
            assert sum(value is not None for value in realized) > 0
            tab.evaluate("senn.player.show(0)")  # it still moves
            assert "The start" in state(tab)
    with pytest.raises(OSError, match=r"."):
        http.client.HTTPConnection(
            "127.0.0.1", int(watch.url.split(":")[2].split("/")[0]), timeout=1
        ).connect()


def test_the_page_of_a_folder_that_fit_wrote(browser, tmp_path):
    folder = tmp_path / "wine"
    assert main(["fit", "wine", "--epochs", "1", "--out", str(folder), "--quiet"]) == 0
    assert main(["report", str(folder)]) == 0
    with opened(browser, (folder / "report.html").as_uri()) as tab:
        assert "class Net" in tab.inner_text("#final pre")
        assert tab.inner_text("h1") == "wine"
        score = read(folder).results["test"]["accuracy"]
        assert tab.inner_text(".tiles dd >> nth=0").startswith(f"{score:.4g}")
