"""The page of a report: one file of HTML without scripts, fonts or files from elsewhere."""

import dataclasses
import pathlib
from collections.abc import Sequence

import dcjax
from dcjax.report import html
from dcjax.report.comparison import comparison
from dcjax.report.escape import text
from dcjax.report.finding import finding
from dcjax.report.record import Run
from dcjax.report.sections import Detail, detail_for, raw_data, run_section
from dcjax.report.style import CSS
from dcjax.report.svg import Sheet
from dcjax.runtime.errors import SettingError

MAX_PAGE = 490_000  # bytes
MAX_RUNS = 10
MAX_RAW = 60_000  # characters of one run's raw data
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def page(runs: Sequence[Run]) -> str:
    """The report on some runs, in ASCII, so that no reader can take it for another encoding.

    Raises:
      SettingError: the page would be too large.
    """
    if len(runs) > MAX_RUNS:
        raise SettingError(f"a report holds at most {MAX_RUNS} runs, found {len(runs)}; write several reports")
    detail = detail_for(len(runs))
    for coarser in (1, 2, 4):
        whole = _page(runs, dataclasses.replace(
            detail, points=max(detail.points // coarser, 20), compared=detail.compared // coarser
        ))  # fmt: skip
        if len(whole) <= MAX_PAGE:
            return whole
    raise SettingError(f"the report on {len(runs)} run(s) would have {len(whole) // 1000} kB; name fewer runs")


def _page(runs: Sequence[Run], detail: Detail) -> str:
    """The page at some detail; it is as large as its figures need, and raw data fill it up to `MAX_PAGE`."""
    sheet, names = Sheet(), run_names(runs)
    found = [finding(run) for run in runs]
    title = f"dcjax report: {names[0]}" if len(runs) == 1 else f"dcjax report: {len(runs)} runs"
    parts = [comparison(sheet, runs, names, found, detail)] if len(runs) > 1 else []
    parts += [
        run_section(sheet, run, name if len(runs) > 1 else "Verdict", words, detail, index=index)
        for index, (run, name, words) in enumerate(zip(runs, names, found, strict=True))
    ]
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title, 120)}</title>\n<style>{CSS}{sheet.css()}</style>\n</head>\n<body>\n"
        f"<header><h1>{text(title, 120)}</h1>{_subtitle(runs)}</header>\n<main>\n"
    )
    made = f"Written by dcjax report {dcjax.__version__}. The page holds no script."
    foot = f"</main>\n<footer><p>{made}</p></footer>\n</body>\n</html>\n"
    room = MAX_PAGE - sum(map(_size, [head, *parts, foot])) - 1000
    raw = max(min(MAX_RAW, room // len(runs)), 0)
    for index, run in enumerate(runs, len(parts) - len(runs)):
        parts[index] += raw_data(run, raw - 500) + "</section>\n"
    return _ascii(head + "".join(parts) + foot)


def run_names(runs: Sequence[Run]) -> list[str]:
    """Short names of the runs: their folders' own names where these differ, else the folders as given."""
    short = [pathlib.Path(run.folder).expanduser().absolute().name or run.folder for run in runs]
    return short if len(set(short)) == len(short) else [run.folder for run in runs]


def _subtitle(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return html.paragraph(
            "Runs of dcjax main on the same kind of data, side by side; a section for each follows.", "soft"
        )
    config = runs[0].config
    words = (
        f"{config.model.name}, projector {config.projector.name}, {config.loss.name} at temperature "
        f"{config.loss.temperature:g}, batches of {config.batch_size:,} from {config.data.name}, seed {config.seed}; "
        f"folder {runs[0].folder}"
    )
    return html.paragraph(words, "soft")


def _ascii(page: str) -> str:
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _size(part: str) -> int:
    return len(_ascii(part))
