"""The report: what it says, that it is one file, and that a real browser shows it without a fault."""

import json
import os
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from browser import (
    SCHEMES,
    SCREEN,
    WIDTHS,
    find_overflow,
    find_overlaps,
    find_pale_text,
    open_browser,
    read_console,
    show,
)
from made_runs import write_beside, write_crash, write_probe, write_run, write_sweep

from zo.analysis.claims.judge import write_claims
from zo.analysis.claims.rules import CLAIMS
from zo.analysis.collect import WHOLE_PROCESS, read_folder
from zo.analysis.figures.plots import FIGURES
from zo.analysis.report import CLAIMS as CLAIMS_FILE
from zo.analysis.report import read_claims, render_report, write_report
from zo.analysis.summary import summarize
from zo.analysis.words import MODES as MODE_WORDS
from zo.analysis.words import SCOPES as SCOPE_WORDS
from zo.cli import main
from zo.cli.training import read_spec
from zo.errors import UserError
from zo.methods import METHODS
from zo.sizes import SCOPES
from zo.spec import RunSpec

EVIL = "<script>throw 1</script> & \"quotes\" 'and' <b>more</b>"


class Tags(HTMLParser):
    """Every element's name and attributes, in order."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep of three seeds with a crash, a divergence, a lost run, a spec and a manifest."""
    folder = tmp_path_factory.mktemp("results") / "csv_logs"
    write_sweep(folder, seeds=(0, 1, 2))
    spec = RunSpec.make(mode="ZO", scope="full", query_budget_q=8, learning_rate=1e-3, max_steps=100)
    run = "ZO_full_bs4_q8_lr1e-03"
    write_beside(folder, run, "spec.json", json.loads(spec.to_json()))
    manifest = {"commit": "abc-dirty", "threads": 3, "host": "a-host", "versions": {"torch": "2.13.0"}}
    manifest["gpu"] = {"name": "an H100", "multiprocessors": 132}
    write_beside(folder, run, "manifest.json", manifest)
    write_crash(folder, "ZO_full_bs4_q8_lr3e-02", ["last words " + EVIL], reason=EVIL)
    write_probe(folder, run)
    lost = folder.parent / "runs" / "ZO_full_bs4_q8_lr9e-01"
    lost.mkdir()
    (lost / "log.csv").write_text("step\n")
    write_claims(folder, folder.parent / "claims.csv")
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return write_report(folder, folder.parent / "report.html")


@pytest.fixture(scope="module")
def text(page):
    return page.read_text()


def test_the_question_and_the_answer_with_n_and_interval_come_first(text):
    head = text[text.index("<h1>") : text.index('<section id="guards"')]
    assert "keep up with backprop?" in head
    assert re.search(r"full: best ZO q=8 .*: 1\.\d+ ± \d\.\d+ above the best FO", head)
    assert "n = 3 seeds" in head
    assert "Verdict withheld: not tuned (full; reduced)" in head
    assert head.index("headline") < head.index("<table")


def test_contexts_with_a_verdict_come_first_and_a_withheld_difference_is_no_headline(tmp_path):
    folder = tmp_path / "csv_logs"
    for seed in (0, 1, 2):
        for scope, rates in (("full", (1e-4, 1e-3)), ("reduced", (1e-4, 1e-3, 1e-2))):
            for mode, q, lrs in (("FO", 0, (1e-3, 1e-2, 1e-1)), ("ZO", 8, rates), ("Random", 8, (1e-3,))):
                for lr in lrs:
                    write_run(folder, mode, scope, q, lr, seed=seed)
    reading = read_folder(folder)
    text = unescape(render_report(reading))
    [headline] = re.findall(r'class="headline">(.*?)</p>', text)
    number = r"\+1\.\d+ ± \d\.\d+"
    wanted = (
        rf"ZO's final loss minus FO's: {number} in reduced \(nats, n = 3 seeds\)\. FO ahead \(reduced\)\. "
        r"Verdict withheld: not tuned \(full\)\."
    )
    assert re.fullmatch(wanted, headline)
    assert text.index("<p>reduced: best ZO") < text.index("<p>full: best ZO")
    places = [finding.where for finding in reading.findings]
    assert places == sorted(places, reverse=True)
    n = places.count("full")
    assert f"{n} of these {len(places)} are of full, where no verdict on ZO stands." in text
    assert list(dict.fromkeys(reading.tables["answer"]["scope"])) == ["reduced", "full"]


def read_words(text):
    """The terms of a page and what they mean."""
    return {term: meaning for term, meaning in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", unescape(text))}


def test_the_page_defines_the_words_that_occur_in_it_and_no_others(text, tmp_path):
    assert list(read_words(text)) == [
        *("FO", "ZO", "Calibrate", "Instruct", "Random", "Frozen", "q", "full", "reduced"),
        *("forward-pass equivalents", "share of FO's gain", "law"),
    ]
    write_run(tmp_path / "csv_logs", "FO", "block1", 0, 1e-2)
    text = write_report(tmp_path / "csv_logs", tmp_path / "r.html", backward_cost=3).read_text()
    said = read_words(text)
    assert list(said) == ["FO", "ZO", "block<i>", "forward-pass equivalents"]
    assert "3 x backward passes" in said["forward-pass equivalents"]


def test_every_method_and_scope_has_its_line():
    assert list(MODE_WORDS) == list(METHODS)
    assert list(SCOPE_WORDS) == list(SCOPES)


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"jobs": 4}, "may have shared the machine: up to 4 at once in the last sweep."),
        ({"jobs": 1}, "may have shared the machine."),  # the sweeps before the last one are not known
        ({}, "may have shared the machine."),
    ],
)
def test_seconds_are_said_to_be_of_a_shared_machine(tmp_path, sweep, said):
    for mode, q in (("FO", 0), ("ZO", 8)):
        write_run(tmp_path / "csv_logs", mode, "full", q, 1e-3)
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    reading = read_folder(tmp_path / "csv_logs")
    text = render_report(reading)
    assert text.count(f"Seconds are of runs that {said}") == 2  # beside equal seconds, beside the bars
    assert f"Seconds are of runs that {said}" in " ".join(summarize(reading).split())


def test_memory_is_said_to_be_the_whole_processs_wherever_it_decides(text):
    for name in ("table-equal_budgets", "table-pareto"):
        note = text[: text.index(f'id="{name}"')].rpartition('<p class="note">')[2]
        assert WHOLE_PROCESS in unescape(note)


@pytest.mark.parametrize(
    ("commits", "said"),
    [
        (["abc", "abc"], " at commit abc and"),
        (["abc", "def"], " at the commit of each run's manifest.json and"),
        ([None, None], " and"),
    ],
)
def test_the_page_says_what_its_commands_need(tmp_path, commits, said):
    folder = tmp_path / "csv_logs"
    for seed, commit in enumerate(commits):
        run = write_run(folder, "ZO", seed=seed)
        assert "The commands need" not in render_report(read_folder(folder))  # there are none
        write_beside(folder, run, "manifest.json", {"commit": commit})
    write_beside(folder, run, "spec.json", {"mode": "ZO"})
    text = unescape(render_report(read_folder(folder)))
    wanted = f"The commands need the project's checkout{said} read the specs in <code>{tmp_path}/runs</code>"
    assert wanted in text


def test_it_is_one_file_that_asks_for_nothing_else(text):
    tags = Tags(text).found
    outside = [a[key] for _, a in tags for key in ("src", "href") if key in a]
    assert outside
    assert [link for link in outside if not link.startswith(("#", "data:"))] == []
    assert "url(" not in text
    assert "@import" not in text
    ids = {a["id"] for _, a in tags if "id" in a}
    assert {link[1:] for link in outside if link.startswith("#")} <= ids


def test_the_same_logs_give_the_same_bytes(folder, page, tmp_path):
    assert write_report(folder, tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_every_figure_has_a_computed_caption_and_a_text_alternative(text):
    pictures = [a for tag, a in Tags(text).found if tag == "img"]
    assert len(pictures) == len(FIGURES)
    assert all(a["src"].startswith("data:image/png;base64,iVBOR") for a in pictures)
    assert all("FO 2.684, ZO q=1" in a["alt"] for a in pictures if "Final validation loss" in a["alt"])
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.S)
    assert len(captions) == len(FIGURES)
    assert all("n = 3 seeds; 100 steps and 25.6k training tokens a run." in caption for caption in captions)
    steps = captions[list(FIGURES).index("loss_vs_steps")]
    assert re.search(r"full, at equal steps: .*ZO q=8 is 1\.425 ± 0\.000 above FO \(at 100\)", steps)


def test_failed_diverged_and_lost_runs_stand_with_reason_and_log(text, folder):
    section = text[text.index('<section id="problems"') : text.index('<section id="settings"')]
    for words in ("RuntimeError: boom", "loss not finite from step 30", "no outcome was recorded"):
        assert words in section
    assert f"{folder.parent}/job_logs/ZO_full_bs4_q8_lr1e-02.log" in section
    assert "Traceback (most recent call last):" in section


def test_what_runs_wrote_cannot_become_markup(text):
    assert EVIL not in text
    assert "&lt;script&gt;throw 1&lt;/script&gt;" in text
    assert [tag for tag, _ in Tags(text).found].count("script") == 1


def test_settings_versions_hardware_and_commit_are_there(text):
    section = text[text.index('<section id="settings"') :]
    for words in ("abc-dirty", "a-host", "an H100", "2.13.0", "vocab_size", "validation_interval"):
        assert words in section


def test_a_rows_command_is_one_that_makes_that_run(text, folder):
    spec = folder.parent / "runs" / "ZO_full_bs4_q8_lr1e-03" / "spec.json"
    [command] = [c for c in re.findall(r"<code>(python -m zo train[^<]*)</code>", text) if str(spec) in c]
    words = shlex.split(command)[3:]
    from zo.cli import build_parser

    options = build_parser().parse_args(words)
    assert read_spec(options) == RunSpec.from_json(spec.read_text())
    assert options.threads == 3
    assert "its settings were not recorded" in text  # of the runs without a spec


def test_every_claim_stands_with_verdict_and_numbers_before_the_guards_and_the_runs(text):
    order = [text.index(f'<section id="{name}"') for name in ("answer", "claims", "guards", "runs")]
    assert order == sorted(order)
    section = text[order[1] : order[2]]
    assert [text for text in re.findall(r'scope="row" data-key="(C\w+)"', section)] == [
        c.name for c in CLAIMS
    ]
    assert 'class="verdict supported" data-key="supported">supported<' in section
    assert "<p>q=8 minus q=1 at equal steps: -0.7602 nats (-0.7602 to -0.7602), n = 3</p>" in section
    assert (
        "<p>Undecided: not tuned: ZO q=8, full, lr 1e-03: best is the highest learning rate tried" in section
    )
    assert section.count("<details") == len(CLAIMS)
    assert '<a href="#claims">' in text


def test_tables_that_other_commands_leave_are_shown(folder, tmp_path):
    results = tmp_path / "csv_logs"
    write_run(results, "ZO")
    (tmp_path / "claims.csv").write_text("claim,verdict,n\nC1,undecided,3\n")
    text = write_report(results, tmp_path / "r.html").read_text()
    assert '<section id="claims">' in text
    assert ">undecided<" in text
    assert '<section id="diagnostics">' not in text


@pytest.mark.parametrize(
    ("age", "said"), [(-1, f"{CLAIMS_FILE} is older than 1 of the 2 logs; judge again"), (1, "")]
)
def test_verdicts_older_than_a_log_are_marked(tmp_path, age, said):
    folder = tmp_path / "csv_logs"
    logs = [folder / f"{write_run(folder, 'ZO', lr=lr)}.csv" for lr in (1e-4, 1e-3)]
    claims = tmp_path / CLAIMS_FILE
    claims.write_text("claim,verdict,n\nC1,undecided,3\n")
    for path, at in ((logs[0], 1000), (logs[1], 2000), (claims, 2000 + age)):
        os.utime(path, (at, at))
    found = read_claims(read_folder(folder))["age"]
    assert found.startswith(said)
    assert bool(found) == bool(said)


@pytest.mark.parametrize("broken", ["claims.csv", "probes/ZO_reduced_bs4_q1_lr1e-04.csv"])
def test_a_table_of_zero_bytes_is_named(tmp_path, broken):
    write_run(tmp_path / "csv_logs", "ZO", lr=1e-4)
    (tmp_path / broken).parent.mkdir(exist_ok=True)
    (tmp_path / broken).write_text("")
    with pytest.raises(UserError, match=rf"{broken} is not a CSV table \(.*\): remove it or write it again"):
        read_claims(read_folder(tmp_path / "csv_logs"))


@pytest.mark.parametrize(
    ("flags", "shown"), [([], True), (["--study", "asks.yaml"], True), (["--study", "asks_not.yaml"], False)]
)
def test_claims_that_a_study_no_longer_asks_for_are_not_in_its_report(tmp_path, monkeypatch, flags, shown):
    monkeypatch.chdir(tmp_path)
    write_run(Path("csv_logs"), "ZO", lr=1e-4)
    Path("claims.csv").write_text("claim,verdict,n\nC1,undecided,3\n")
    study = {"study": "t", "modes": "ZO", "learning_rates": 1e-4, "batch_sizes": 4, "max_steps": 100}
    Path("asks.yaml").write_text(json.dumps(study | {"claims": True}))
    Path("asks_not.yaml").write_text(json.dumps(study))
    assert main(["report", "csv_logs", *flags]) == 0
    assert ('<section id="claims">' in Path("report.html").read_text()) == shown


def test_foreign_logs_with_the_columns_that_matter_are_enough(tmp_path):
    folder = tmp_path / "csv_logs"
    folder.mkdir()
    for mode, losses in {"FO": (3, 2, 1.2), "ZO": (3, 2.5, 2.2)}.items():
        rows = [f"{i},{mode},{loss}" for i, loss in enumerate(losses)]
        (folder / f"{mode}.csv").write_text("\n".join(["step,mode,loss", *rows]) + "\n")
    text = write_report(folder, tmp_path / "r.html").read_text()
    assert "these are TRAINING losses" in text
    (folder / "alien.csv").write_text("step,mode\n1,ZO\n")
    with pytest.raises(UserError, match=r"alien\.csv lacks the columns: loss or val_loss"):
        write_report(folder, tmp_path / "r.html")


def test_the_command_line_writes_it_in_two_ways(tmp_path, capsys):
    write_run(tmp_path / "csv_logs", "ZO")
    assert main(["report", str(tmp_path / "csv_logs"), "--out", str(tmp_path / "mine.html")]) == 0
    assert main(["analyze", str(tmp_path / "csv_logs"), "--format", "html"]) == 0
    assert (tmp_path / "mine.html").read_bytes() == (tmp_path / "report.html").read_bytes()
    assert capsys.readouterr().out.split() == [str(tmp_path / n) for n in ("mine.html", "report.html")]
    assert main(["report", str(tmp_path / "csv_logs"), "--backward-cost", "-1"]) == 2
    assert "must be 0 or more" in capsys.readouterr().err


def test_a_studys_backward_cost_counts_unless_the_flag_says_another(tmp_path, capsys):
    logs = tmp_path / "csv_logs"
    run = {"modes": "ZO", "batch_sizes": 4, "query_budgets": 8, "learning_rates": 1e-4, "max_steps": 9}
    write_run(logs, "ZO", q=8, lr=1e-4)
    study = ["--study", json.dumps(run | {"study": "t", "backward_cost": "3"})]
    for flags, cost in ((study, 3), ([*study, "--backward-cost", "4"], 4), ([], 2)):
        for command in ("stats", "analyze"):
            assert main([command, str(logs), *flags]) == 0
            assert f"a backward pass counts {cost};" in " ".join(capsys.readouterr().out.split())
        assert main(["report", str(logs), *flags]) == 0
        assert f"a backward pass counts {cost};" in (tmp_path / "report.html").read_text()


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with open_browser() as driver:
        yield driver


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_error_no_overflow_no_overlap_and_enough_contrast(browser, page, width, scheme):
    show(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert read_console(browser) == []
    assert find_overflow(browser) == []
    assert find_overlaps(browser) == []
    assert find_pale_text(browser) == []


def test_guards_stand_beside_the_answer_on_the_first_screen_of_a_phone(browser, page):
    show(browser, page, min(WIDTHS))
    alarm = browser.find_element("css selector", "header .alarm.severe")
    assert alarm.text.startswith("Guards raised: NOT TUNED")
    bottom = browser.execute_script("return arguments[0].getBoundingClientRect().bottom", alarm)
    assert bottom < SCREEN
    alarm.find_element("css selector", "a").click()
    assert browser.execute_script("return location.hash") == "#guards"


def test_words_are_as_large_in_every_figure(browser, page):
    show(browser, page)
    scales = "return [...document.querySelectorAll('.picture img')].map((i) => i.width / i.naturalWidth)"
    found = browser.execute_script(scales)
    assert len(found) == len(FIGURES)
    assert max(found) < 1.35 * min(found)


def test_the_checks_of_the_page_see_what_they_look_for(browser, page, tmp_path):
    """An error, a wide line, two blocks in one place, and pale text, planted."""
    bad = '<p style="width: 2000px">wide</p><p style="margin-top: -3em; color: #ccc">pale</p>'
    broken = page.read_text().replace("</header>", f"</header><section>{bad}</section>")
    (tmp_path / "bad.html").write_text(
        broken.replace('"use strict";', '"use strict"; console.error("boom");')
    )
    show(browser, tmp_path / "bad.html", 390)
    assert "boom" in read_console(browser)[0]
    assert find_overflow(browser)[0] == "the page itself"
    assert "pale" in find_overlaps(browser)[0]
    assert "pale" in find_pale_text(browser)[0]


def press(browser, *keys):
    browser.switch_to.active_element.send_keys(*keys)


def column(browser, name):
    """The visible texts of one column of the table of runs."""
    return browser.execute_script(
        """
        const heads = [...document.querySelectorAll("#table-runs thead th")];
        const named = (head) => head.textContent.trim() === arguments[0];
        return [...document.querySelectorAll("#table-runs tbody tr")].filter((row) => !row.hidden)
          .map((row) => row.cells[heads.findIndex(named)].textContent.trim());
        """,
        name,
    )


def test_a_table_sorts_by_keyboard_and_says_so(browser, page):
    from selenium.webdriver.common.keys import Keys

    show(browser, page)
    heads = browser.find_elements("css selector", "#table-runs thead th[scope=col]")
    head = next(th for th in heads if th.text.strip() == "val")
    browser.execute_script("arguments[0].focus()", head.find_element("css selector", "button"))
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    press(browser, Keys.ENTER)
    assert head.get_attribute("aria-sort") == "ascending"
    shown = column(browser, "val")
    measured = [float(text) for text in shown if text != "-"]
    assert measured == sorted(measured)
    assert shown[len(measured) :] == ["-"] * (len(shown) - len(measured))
    press(browser, Keys.SPACE)
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in column(browser, "val")[: len(measured)]] == measured[::-1]
    press(browser, Keys.TAB)
    assert browser.switch_to.active_element.tag_name == "button"
    assert outline != "none"
    sorted_heads = browser.find_elements("css selector", "#table-runs th[aria-sort]")
    assert len(sorted_heads) == 1


def choose(browser, wanted):
    """Go down the focused list with the arrow key until it shows `wanted`."""
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    listed = Select(browser.switch_to.active_element)
    press(browser, Keys.HOME)
    while listed.first_selected_option.text != wanted:
        before = listed.first_selected_option.text
        press(browser, Keys.ARROW_DOWN)
        assert listed.first_selected_option.text != before, f"no {wanted} in the list"


def test_runs_are_filtered_by_keyboard_and_their_number_is_announced(browser, page):
    from selenium.webdriver.common.keys import Keys

    show(browser, page)
    everything = len(column(browser, "run"))
    browser.execute_script("document.querySelector('.filters input').focus()")
    press(browser, "zo_")
    assert set(column(browser, "mode")) == {"ZO"}
    press(browser, Keys.TAB)
    choose(browser, "crashed")
    assert set(column(browser, "status")) == {"crashed"}
    assert len(column(browser, "run")) == 2
    choose(browser, "all")
    press(browser, *[Keys.TAB] * 4)
    choose(browser, "1e-03")
    assert set(column(browser, "lr")) == {"1e-03"}
    said = browser.find_element("css selector", ".filters output")
    assert said.get_attribute("aria-live") == "polite"
    assert said.text == f"{len(column(browser, 'run'))} of {everything} runs"


def test_headings_tables_and_figures_are_marked_up_for_those_who_listen(browser, page):
    show(browser, page)
    levels = [int(h.tag_name[1]) for h in browser.find_elements("css selector", "h1, h2, h3, h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert browser.find_element("css selector", "html").get_attribute("lang") == "en"
    assert browser.find_elements("css selector", "table:not(:has(caption))") == []
    assert browser.find_elements("css selector", "th:not([scope])") == []
    assert browser.find_elements("css selector", "img:not([alt]), img[alt='']") == []
    assert browser.find_elements("css selector", ".scroll:not([tabindex='0'][aria-label])") == []
    unnamed = "return [...document.querySelectorAll('select, input')].filter((e) => !e.labels.length).length"
    assert browser.execute_script(unnamed) == 0
