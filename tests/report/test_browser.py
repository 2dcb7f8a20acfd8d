"""Reports as a browser shows them: nothing is refused, nothing is missing, and nothing is wider than the window."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest
from PIL import Image
from report_runs import write_run

from dcjax.report.page import page
from dcjax.report.record import read_runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]
WIDTHS = (1400, 400)

# The page under test stands in a frame of some width, and this script of the page around it measures it.
MEASURE = """
<iframe width="{width}" height="2000" style="border: 0" srcdoc="{page}"></iframe><pre id="measured"></pre>
<script>
  onload = () => {{
    const frame = document.querySelector("iframe").contentDocument, root = frame.documentElement;
    const all = [...frame.body.querySelectorAll("*")].filter((e) => !e.closest(".box, pre.raw, figure > svg"));
    const text = [...frame.querySelectorAll("figure > svg text")].filter((e) => e.textContent.trim());
    document.querySelector("#measured").textContent = JSON.stringify({{
      window: root.clientWidth, page: root.scrollWidth,
      wide: all.filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1).map((e) => e.outerHTML),
      smallest: Math.min(...text.map((e) => e.getBoundingClientRect().height)),
      cut: text.filter((e) => {{
        const own = e.getBoundingClientRect(), around = e.ownerSVGElement.getBoundingClientRect();
        return own.left < around.left - 1 || own.right > around.right + 1 || own.bottom > around.bottom + 2;
      }}).map((e) => e.textContent),
      executed: frame.defaultView.executed === true,
    }});
  }};
</script>
"""


def chromium(tmp_path, address, *flags):
    """Runs Chromium on a file without a network, and returns its output and its log."""
    # fmt: off
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", *flags, address.as_uri(),
    ]
    # fmt: on
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def measured(tmp_path, text, width):
    """The sizes of a page in a window of some width."""
    around = tmp_path / f"around-{width}.html"
    around.write_text(MEASURE.format(width=width, page=html.escape(text)))
    output, log = chromium(tmp_path, around, "--dump-dom", "--window-size=1500,2100")
    return json.loads(html.unescape(re.search(r'<pre id="measured">(.*?)</pre>', output, re.DOTALL)[1])), log


@pytest.fixture(scope="module", params=[1, 5])
def report(request, tmp_path_factory):
    """The file of a report on some runs, whose names and commands are long."""
    base = tmp_path_factory.mktemp(f"runs{request.param}")
    folders = [
        write_run(base / f"directclr-with-a-long-name-{'x' * 40}-{i}", seed=i, dead=5 * i, batch_size=128 << i % 2)
        for i in range(request.param)
    ]
    (folders[0] / "command.json").write_text(json.dumps({"command": "dcjax main " + "--config.seed=1" * 40}))
    path = base / "report.html"
    path.write_text(page(read_runs([str(folder) for folder in folders])))
    return path


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_the_window(tmp_path, report, width):
    found, _ = measured(tmp_path, report.read_text(), width)
    assert found["window"] == width
    assert found["page"] <= width
    assert found["wide"] == []
    assert found["cut"] == []
    assert found["smallest"] >= 9  # pixels from the top to the foot of a line


def test_a_page_that_is_too_wide_is_noticed(tmp_path, report):
    wide = report.read_text().replace("</main>", "<p style='width: 600px'>wide</p></main>")
    found, _ = measured(tmp_path, wide, 400)
    assert found["page"] > 400
    assert "wide</p>" in found["wide"][0]


def test_the_browser_reads_every_section_and_refuses_nothing(tmp_path, report):
    output, log = chromium(tmp_path, report, "--dump-dom")
    for heading in ("Reproduce", "Loss, gradient norms and throughput", "Spectra over time", "Probe", "Warnings"):
        assert f"<h3>{heading}</h3>" in output
    assert output.count("<svg role") == report.read_text().count("<svg role") > 10
    assert log == ""


def test_a_script_in_the_page_would_be_refused(tmp_path, report):
    script = "<script>window.executed = true</script><img src=x onerror='window.executed = true'>"
    found, log = measured(tmp_path, report.read_text().replace("</main>", f"{script}</main>"), 1400)
    assert not found["executed"]
    assert "Content Security Policy" in log


@pytest.mark.parametrize("width", WIDTHS)
def test_screenshots(tmp_path, report, width):
    path = tmp_path / f"{width}.png"
    chromium(tmp_path, report, f"--screenshot={path}", f"--window-size={width},1200")
    with Image.open(path) as image:
        assert image.size == (width, 1200)
        assert len(image.convert("RGB").quantize(64).getcolors()) > 16  # it shows something
