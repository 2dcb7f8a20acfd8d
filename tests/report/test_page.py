"""The page of a report: one safe, small file that is the same for the same runs."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
from report_runs import write_lines, write_run

from dcjax.report.finding import finding
from dcjax.report.page import MAX_RUNS, page
from dcjax.report.record import read_run, read_runs
from dcjax.report.style import CSS
from dcjax.report.svg import Sheet
from dcjax.runtime.errors import SettingError

VOID = {"meta", "br", "path", "rect", "use", "image", "i"}


class Parsed(html.parser.HTMLParser):
    """Tags, ids, links and text of a page; checks that tags are closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.attributes, self.texts, self._open = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src")]
        self.links += [f"#{found}" for _, value in attrs for found in re.findall(r"url\(#(.*?)\)", value or "")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def check_safe(text):
    """What every page promises."""
    assert text.isascii()
    assert len(text) < 500_000
    parsed = Parsed(text)
    assert not {"script", "iframe", "object", "embed", "link", "base", "form", "input", "foreignobject"} & set(
        parsed.tags
    )
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in parsed.links)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert "@import" not in text
    assert text.count("http") == 1 + text.count("http-equiv") - 1  # no address anywhere
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    assert '<html lang="en">' in text
    assert text.index("Content-Security-Policy") < text.index("<style>")
    return parsed


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("single") / "run", seed=2, dead=6, looks=4)
    return folder, page([read_run(str(folder))])


def test_one_run_has_all_of_its_parts(single):
    _, text = single
    parsed = check_safe(text)
    headings = re.findall(r"<h[123]>(.*?)</h", text)
    assert headings == [
        "dcjax report: run", "Verdict", "Reproduce", "Loss, gradient norms and throughput", "Measures over time",
        "Spectra over time", "Probe", "Warnings", "Raw data",
    ]  # fmt: skip
    words = " ".join(parsed.texts)
    assert "The representation r has collapsed in some dimensions; the embedding z has not collapsed." in words
    assert "6 of its 64 directions: try a lower learning rate" in words
    assert "dcjax main --config=configs/quickstart.py --config.seed=2" in words
    assert "chance, ln(128) = 4.852" in words
    assert "96.3 ± 0.3" in words
    assert "encoder.stage4" in words
    assert "300" in words
    assert '"online_accuracy"' in words  # the raw data
    assert text.count("data:image/png") == 2  # the heat maps of r and z
    labels = [value for name, value in parsed.attributes if name == "aria-label"]
    assert len(labels) == text.count('role="img"') == text.count("<figcaption>")
    assert any(label.startswith("loss over steps: loss from") for label in labels)


def test_the_verdict_in_words_is_that_of_the_monitor(tmp_path):
    """A healthy ReLU network has dead channels: the verdict counts them, but the monitor sees no sign of collapse."""
    folder = write_run(tmp_path / "run", looks=2, lines=2)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "monitor" in line][-1]

    def found(**changes):
        last.update({"signs": [], **changes})
        write_lines(folder / "metrics.jsonl", lines)
        return finding(read_run(str(folder)))

    one = found(verdict={"r": "dimensional", "z": "none", "\x1b[31m": "none"})
    assert (one.tone, one.short) == ("good", "r: dimensional, no warning, z: no collapse")
    assert not any("even one of them" in reason for reason in one.reasons)
    last["monitor"]["r/lost"] = 0.0
    assert any("even one of them" in reason for reason in found().reasons)
    one = found(signs=["r/dimensional"])
    assert not any("even one of them" in reason for reason in one.reasons)
    assert (one.tone, one.short) == ("bad", "r: dimensional, z: no collapse")
    one = found(signs=["chance", "z/rank"])
    assert (one.tone, one.short) == ("bad", "at its chance line, r: dimensional, no warning, z: rank has fallen")
    assert one.headline.startswith("The embedding tells no images apart")
    one = found(verdict={"r": "none", "z": "complete"})
    assert (one.tone, one.parts["z"]) == ("bad", "complete")


def test_without_a_projector_the_signs_of_z_are_those_of_r(tmp_path):
    folder = write_run(tmp_path / "run", looks=2, lines=2)
    run = read_run(str(folder))
    run = dataclasses.replace(run, kinds={"r": "dimensional", "z": "dimensional"}, signs=("z/dimensional",), advice=())
    assert finding(run).parts == {"r": "dimensional, no warning", "z": "dimensional"}
    projector = dataclasses.replace(run.config.projector, name="none")
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, projector=projector))
    assert finding(run).parts == {"r": "dimensional", "z": "dimensional"}


def test_a_loss_at_its_chance_line_is_seen_without_a_monitor_but_not_during_the_warmup(tmp_path):
    folder = write_run(tmp_path / "run", monitor=False, lines=2)
    rows = [{"step": step, "loss": 4.85, "learning_rate": rate} for step, rate in ((1, 0.0), (20, 1.0), (300, 0.1))]
    for count, short in (
        (2, "r: no collapse, z: no collapse"),
        (3, "at its chance line, r: no collapse, z: no collapse"),
    ):
        write_lines(folder / "metrics.jsonl", rows[:count])
        assert finding(read_run(str(folder))).short == short
    assert finding(read_run(str(folder))).next[0].startswith("Try a lower learning rate")


def test_a_run_that_has_not_ended_says_so_first(tmp_path):
    folder = write_run(tmp_path / "run", end=False, total_steps=900)
    one = finding(read_run(str(folder)))
    assert one.reasons[0] == "The run has not ended: it stands at step 300 of 900."
    assert not any("dcjax probe" in line for line in one.next)
    text = page([read_run(str(folder))])
    assert "--config=configs/quickstart.py --config.seed=0 --workdir=runs/run-again" in text


def test_a_point_is_seen_without_a_monitor(tmp_path):
    folder = write_run(tmp_path / "run", monitor=False, lines=2)
    spectra = {name: np.full(8, 5e-16) for name in ("r", "z", "r_unit", "z_unit")}
    np.savez(folder / "spectrum.npz", **spectra)
    one = finding(read_run(str(folder)))
    assert (one.tone, one.short) == ("bad", "r: complete, z: complete")


def test_the_same_runs_give_the_same_bytes(single):
    folder, text = single
    assert page([read_run(str(folder))]) == text


def test_light_dark_and_narrow():
    assert "prefers-color-scheme: dark" in CSS
    assert "overflow-x: auto" in CSS
    assert "url(" not in CSS


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e\x1b[31m"


def test_everything_from_a_run_is_escaped(tmp_path):
    folder = write_run(tmp_path / HOSTILE.replace("/", "_"), steps=3, lines=3, looks=2, data__test_split=HOSTILE)
    (folder / "command.json").write_text(
        json.dumps({"command": HOSTILE, "config": HOSTILE, "changes": {HOSTILE: [HOSTILE, {HOSTILE: 1}]}})
    )
    line = {"step": 4, "monitor": {f"{HOSTILE}/{HOSTILE}": 1.0, f"r/{HOSTILE}": 2.0}, "warnings": [HOSTILE]}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line | {"verdict": {HOSTILE: HOSTILE}}) + "\n")
        file.write(
            json.dumps({"step": 5, HOSTILE: 1.0, f"gradient_norm/{HOSTILE}": 1.0, "loss": 2.0, "x": HOSTILE}) + "\n"
        )
    (folder / "probe.json").write_text(json.dumps({"scores": {HOSTILE: {"top1": 0.5}}}))
    runs = [
        read_run(str(folder)),
        read_run(str(write_run(tmp_path / "']]><svg onload=x>", steps=3, lines=1, monitor=False))),
    ]
    text = page(runs)
    assert "img" not in check_safe(text).tags
    assert "&lt;script&gt;" in text
    assert "\x1b" not in text
    assert "&#8238;" not in text  # the mark that turns the direction of the text


@pytest.mark.parametrize("settings", [{"monitor": False, "end": False, "command": False}, {"looks": 1, "lines": 1}])
def test_runs_with_little_in_them(tmp_path, settings):
    check_safe(page([read_run(str(write_run(tmp_path / "run", steps=1, **settings)))]))


def test_large_texts_and_numbers_stay_within_the_page(tmp_path):
    folder = write_run(tmp_path / "run", data__dir="x" * 60_000, lines=1, looks=1, end=False)
    extreme = {f"r/{'n' * 1000}{i}": (-1) ** i * 1e60 for i in range(60)} | {"z/small": 5e-324}
    with (folder / "metrics.jsonl").open("a") as file:
        for step in (400, 2**53):
            file.write(json.dumps({"step": step, "monitor": extreme, "warnings": ["w" * 10_000] * 50}) + "\n")
            extreme = {name: -value for name, value in extreme.items()}
    text = page([read_run(str(folder))])
    check_safe(text)
    assert "more measures are not drawn" in text


@pytest.mark.slow
def test_ten_large_runs_stay_below_500_kb(tmp_path):
    large = {"steps": 100_000, "lines": 400, "looks": 30, "dims": (1024, 128)}
    folders = [
        write_run(tmp_path / f"run{i}", seed=i, dead=60 * (i % 2), batch_size=256 << i % 2, **large) for i in range(10)
    ]
    runs = read_runs([str(folder) for folder in folders])
    text = page(runs)
    check_safe(text)
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Comparison", *(f"run{i}" for i in range(10))]
    assert "lines of metrics.jsonl" in text
    assert re.search(
        r"<th scope=row><code>batch_size</code></th><td class=number>256</td><td class=number>512</td>", text
    )
    with pytest.raises(SettingError, match=f"at most {MAX_RUNS} runs, found 20"):
        page([*runs, *runs])


def test_figures_share_their_styles_and_have_ids_of_their_own():
    sheet = Sheet()

    def paint(axes):
        axes.plot([0, 1], [0, 1], color="black")

    one, two = (sheet.draw(paint, kind="lines", label='"<&', size=(3, 2)) for _ in range(2))
    assert one != two
    assert one.replace("f1-", "f2-") == two
    assert 'aria-label="&quot;&lt;&amp;"' in one
    used = set(re.findall(r'class="(\w+)"', one))
    assert used == set(re.findall(r"^\.(\w+)\{", sheet.css(), re.MULTILINE))
