"""The page as text: nothing from outside, everything escaped, missed limits first. The browser looks at it in test_browser.py."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sani_dist.audit.measurement import Measurement
from sani_dist.config import VerifySettings
from sani_dist.erase.plan import Memory
from sani_dist.report import plots, write_report
from sani_dist.report.words import number, percent, signed_percent, span
from sani_dist.run import Run

from .conftest import AFTER, BEFORE, MEMORY, MakeRun, share

EVIL = "<script>alert(1)</script>|x"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements in order, their text, and whether tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def words(self) -> str:
        return " ".join(" ".join(self.text).replace("\N{NO-BREAK SPACE}", " ").split())


def html(run: Run, **limits: float) -> str:
    write_report(run, VerifySettings(**limits))
    return run.path("report", "index.html").read_text()


def test_needs_nothing_from_elsewhere_and_has_no_script(make_run: MakeRun) -> None:
    text = html(make_run())
    page = Page(text)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "embed", "base", "form", "image", "use"}
    for _, attributes in page.tags:
        assert not {"src", "srcset", "style", "xlink:href"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import|https?:", text)


def test_links_and_labels_point_at_something(make_run: MakeRun) -> None:
    page = Page(html(make_run()))
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = [str(a["href"])[1:] for tag, a in page.tags if tag == "a"]
    wanted += [name for _, a in page.tags for name in str(a.get("aria-labelledby") or "").split()]
    assert len(wanted) > 10
    assert set(wanted) <= set(ids)


def test_a_kind_with_markup_in_its_name_is_text_in_page_and_card(make_run: MakeRun) -> None:
    kind = share("leak@100", 7, 90, kind=EVIL)
    memory = (Memory("mlp", EVIL, 9, (2, 3), (0.1, 0.9)), *MEMORY)
    run = make_run(before=[*BEFORE, kind], after=[*AFTER, kind], kinds={EVIL: 90}, memory=memory)
    text = html(run)
    assert "<script" not in text
    assert Page(text).words().count("alert(1)") >= 5
    card = run.path("report", "MODEL_CARD.md").read_text()
    assert "<script" not in card.replace("\\<", "")
    (line,) = (line for line in card.splitlines() if "alert" in line and line.startswith("|"))
    assert len(re.findall(r"(?<!\\)\|", line)) == 5


def test_where_memory_sat_is_drawn_and_told(make_run: MakeRun) -> None:
    run = make_run()
    page = Page(html(run))
    cells = [attributes for tag, attributes in page.tags if attributes.get("class") == "heat"]
    strengths = [float(cell["fill-opacity"] or 0) for cell in cells[:6]]
    # A line for each kind and one for ordinary text, two layers each; three quarters are the most.
    assert strengths == pytest.approx(
        [0.04 + 0.96 * share / 0.75 for share in (0.25, 0.75, 0.6, 0.4, 0.5, 0.5)], abs=1e-3
    )
    said = "PERSON: most in layer 3, 75.0 %; RECORD_NUMBER: most in layer 2, 60.0 %; ordinary text: most in layer 2, 50.0 %."
    assert said in page.words()
    assert "PERSON 150 25.0 % 75.0 %" in page.words()


@pytest.mark.parametrize(
    "memory", [(), (Memory("mlp", None, 9, (3,), (1.0,)),), (Memory("mlp", EVIL, 9, (3,), (1.0,)), MEMORY[-1])]
)
def test_where_nothing_can_be_compared_no_memory_is_drawn(make_run: MakeRun, memory: tuple[Memory, ...]) -> None:
    run = make_run(memory=memory)
    assert "Where memory sat" not in Page(html(run)).words()


def test_missed_limits_come_before_kept_ones_and_before_the_verdict(make_run: MakeRun) -> None:
    page = Page(html(make_run(), max_greedy=0.05, max_leak100=0.05)).words()
    first = page.index("1 of 2 limits is missed.")
    places = [page.index(words, first) for words in ("missed 100 samples", "kept Greedy", "Given the true text")]
    assert places == sorted(places)
    assert page.startswith("Limits missed: memorised")


def test_without_limits_none_are_claimed_to_be_kept(make_run: MakeRun) -> None:
    page = Page(html(make_run())).words()
    assert "No limits were set for this run." in page
    assert "kept" not in page


def test_a_missing_value_shows_its_reason(make_run: MakeRun) -> None:
    assert "too few controls" in Page(html(make_run())).words()


def test_a_remark_stands_beside_its_value(make_run: MakeRun) -> None:
    flagged = Measurement("mia_loss_auc", "sensitive", 0.3, 0.2, 0.4, 80, {}, "far under guessing: over-unlearned")
    run = make_run(after=[*AFTER, flagged])
    assert "30.0 % 20.0 to 40.0 % far under guessing: over-unlearned" in Page(html(run)).words()


def test_a_remark_that_all_columns_share_stands_once(make_run: MakeRun) -> None:
    ranked = Measurement("exposure", "sensitive", 3.0, 2.0, 4.0, 20, {}, "rank among up to 32 values")
    run = make_run(before=[*BEFORE, ranked], after=[*AFTER, ranked])
    words = Page(html(run)).words()
    assert words[: words.index("All measurements", 1000)].count("ank among up to 32 values") == 1
    assert "Lower is better. Rank among up to 32 values. 20 3.00 2.00 to 4.00" in words


def test_an_unknown_metric_is_shown_all_the_same(make_run: MakeRun) -> None:
    unknown = Measurement("paraphrase_hits", "sensitive", 12.5, 9.0, 17.25, 300, {"kind": "PERSON"})
    page = Page(html(make_run(after=[*AFTER, unknown]))).words()
    assert "paraphrase_hits sensitive \N{MIDDLE DOT} kind: PERSON 300 \N{EN DASH} 12.5 9.00 to 17.2" in page


def test_known_metrics_stand_in_their_sections_under_their_titles(make_run: MakeRun) -> None:
    more = [
        Measurement("samples_to_leak", "sensitive", 2.1e9, 1e8, 3e10, 300, {}),
        Measurement("exposure", "sensitive", 4.5, 4.0, 4.9, 20, {"kind": "PHONE_NUMBER"}),
        Measurement("mia_minkpp_auc", "repair", 0.55, 0.5, 0.6, 72, {}),
        Measurement("next_token_accuracy", "heldout", 0.4, 0.38, 0.42, 900, {}),
    ]
    page = Page(html(make_run(after=[*AFTER, *more]))).words()
    places = [
        page.rindex(words)  # the contents name sections, too
        for words in (
            "What an attacker can get out", "Samples until a leak", "What it costs", "Next token predicted, held-out documents",
            "Other attacks", "Exposure, PHONE_NUMBER", "Membership by Min-K %++, area under the curve, repaired documents",
            "What was changed in the model",
        )
    ]  # fmt: skip
    assert places == sorted(places)


def test_every_measurement_of_both_audits_is_in_the_last_table(make_run: MakeRun) -> None:
    only_before = share("old_metric", 3, 10)
    page = Page(html(make_run(before=[*BEFORE, only_before]))).words()
    distinct = {(m.metric, m.population, tuple(m.group)) for m in (*BEFORE, *AFTER, only_before)}
    assert (
        f"{len({(m.metric, m.population, str(m.group)) for m in (*BEFORE, *AFTER, only_before)})} measurements" in page
    )
    assert all(metric in page for metric, _, _ in distinct)


def test_a_model_audited_only_when_it_was_sanitised_is_not_called_unchanged(make_run: MakeRun) -> None:
    run = make_run(before=None)
    page = Page(html(run))
    assert "3.0 % (95 % interval 1.4 to 5.6 %, 300 spans) after sanitising." in page.words()
    assert "changes" in {attributes.get("id") for _, attributes in page.tags}
    card = run.path("report", "MODEL_CARD.md").read_text()
    assert ", sanitised" in card
    for text in (page.words(), card):
        assert "What sanitising cost was not measured." in text
        for wrong in ("not changed", "Audit of a language model", "before:"):
            assert wrong not in text


def test_an_audit_alone_has_no_before_and_no_plots_of_changes(make_run: MakeRun) -> None:
    page = Page(html(make_run(after=None)))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"verdict", "extraction", "usefulness"} <= ids
    assert not {"changes", "tradeoff-title", "loss-title"} & ids
    heads = [text for text in page.text if text.strip() in ("before", "after", "measured")]
    assert "measured" in heads
    assert "before" not in heads


def test_a_run_has_plots_with_titles_and_descriptions(make_run: MakeRun) -> None:
    text = html(make_run())
    drawings = re.findall(r'<svg class="plot".*?</svg>', text, re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        title, description = root.find("title"), root.find("desc")
        assert title is not None
        assert title.text
        assert description is not None
        assert description.text
    assert "layer 2: 2; layer 3: 3." in text
    assert "Before: 73.3 % at 24.0. After: 3.0 % at 26.4. Never trained on: 0.5 %." in text.replace(
        "\N{NO-BREAK SPACE}", " "
    )


def test_heads_that_were_reset_are_counted_apart_from_neurons(make_run: MakeRun) -> None:
    run = make_run()
    page = html(run)
    assert "Attention heads that were reset: 1 of layer 2." in page
    assert "5 neurons in 2 of" in page
    card = run.path("report", "MODEL_CARD.md").read_text()
    assert "5 MLP neurons of 2 layers were reset" in card
    assert "1 attention heads of 1 layers were reset" in card


def test_the_card_starts_with_front_matter_and_the_missed_limits(make_run: MakeRun) -> None:
    run = make_run()
    write_report(run, VerifySettings(max_leak100=0.05))
    _, front, text = run.path("report", "MODEL_CARD.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert text.index("The limit is missed.") < text.index("Given the true text")


# Drawing


def places(drawing: str, css: str) -> list[dict[str, float]]:
    """Numeric attributes of the elements of a class."""
    found = [e for e in ElementTree.fromstring(drawing).iter() if css in (e.get("class") or "").split()]
    return [{k: float(v) for k, v in e.attrib.items() if re.fullmatch(r"-?[\d.]+", v)} for e in found]


def test_a_strip_draws_value_and_interval_to_scale() -> None:
    drawing = plots.strip({"before": Measurement("m", "sensitive", 0.5, 0.25, 1.0, 9, {}), "after": None})
    (mark,) = [p for p in places(drawing, "mark") if "cx" in p]
    (interval,) = places(drawing, "interval")
    left, middle, right = (p["x1"] for p in places(drawing, "grid"))
    assert mark["cx"] == middle == (left + right) / 2
    assert interval["x1"] == pytest.approx((left + middle) / 2)
    assert interval["x2"] == right


@given(
    values=st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=60),
    counts=st.dictionaries(st.integers(0, 200), st.integers(1, 10**6), min_size=1, max_size=20),
    cost=st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)),
    leak=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_plots_stay_within_their_frame(
    values: list[float], counts: dict[int, int], cost: tuple[float, float], leak: tuple[float, float]
) -> None:
    def measured(metric: str, pair: tuple[float, float]) -> dict[str, Measurement]:
        return {
            w: Measurement(metric, "sensitive", v, None, None, 9, {})
            for w, v in zip(("before", "after"), pair, strict=True)
        }

    control = Measurement("leak@100", "control", 0.001, 0.0, 1.0, 9, {})
    drawings = [
        plots.curve(list(range(1, len(values) + 1)), values, "loss", ("step", "loss")),
        plots.layers(counts, max(counts) + 1, None),
        plots.tradeoff(measured("perplexity", cost), measured("leak@100", leak), control, ("cost", "leak")),
    ]
    for drawing in drawings:
        width, height = map(float, str(ElementTree.fromstring(drawing).get("viewBox")).split()[2:])
        for css in ("mark", "dot", "bar", "grid", "tick"):
            for place in places(drawing, css):
                assert all(0 <= v <= width for k, v in place.items() if k in ("x", "cx", "x1", "x2"))
                assert all(0 <= v <= height for k, v in place.items() if k in ("y", "cy", "y1", "y2"))


# Words


@pytest.mark.parametrize(
    ("share_", "text"),
    [
        (0, "0 %"),
        (0.0004, "< 0.1 %"),
        (0.0006, "0.1 %"),
        (0.0312, "3.1 %"),
        (0.9996, "> 99.9 %"),
        (1, "100 %"),
        (0.9994, "99.9 %"),
    ],
)
def test_a_percentage_is_never_rounded_to_none_or_all(share_: float, text: str) -> None:
    assert percent(share_) == text


def test_other_numbers() -> None:
    assert [number(x) for x in (26.2557, 1.0446, 0.0312, 1840.2, 2.14e9, 3.4e17, 4.2e-7, 0.0)] == [
        "26.3",
        "1.04",
        "0.0312",
        "1,840",
        "2.1 billion",
        "3.4e+17",
        "4.2e\N{MINUS SIGN}07",
        "0",
    ]
    assert signed_percent(-0.0303) == "\N{MINUS SIGN}3.0 %"
    assert signed_percent(0.1037) == "+10.4 %"


def test_an_interval_repeats_neither_sign_nor_number() -> None:
    assert span("2.1 %", "4.2 %") == "2.1 to 4.2 %"
    assert span("< 0.1 %", "0.2 %") == "< 0.1 % to 0.2 %"
    assert span("< 0.1 %", "< 0.1 %") == "< 0.1 %"
