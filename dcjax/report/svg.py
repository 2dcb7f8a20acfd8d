"""Small figures as SVG inside a page: Matplotlib draws them, and this module makes its output compact.

Equal styles of all figures become one class each, coordinates are rounded, and only ids that something refers to stay,
under names that no other figure of the page has.
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from dcjax.report.escape import text

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dcjax",  # the same runs give the same bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with Matplotlib; the page replaces it
    "font.size": 8,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": "#444444",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.bottom": False,
    "ytick.left": False,
    "path.simplify_threshold": 0.2,
}

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_DROPPED = {"metadata", "title", "desc"}
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


class Sheet:
    """The figures of one page, and the stylesheet that they share."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self._axes: dict[tuple[str, tuple[float, float]], Any] = {}
        self._figures = 0

    def draw(self, paint: Callable[[Any], None], *, kind: str, label: str, size: tuple[float, float]) -> str:
        """A figure as an `<svg>` element.

        Args:
          paint: draws lines or images on the axes that it is given.
          kind: figures of one kind and size use the same axes, one after the other, since most of the time goes into
            making axes and ticks; what `paint` sets of them must be the same for the kind, or set by every figure.
          label: a description for readers who do not see it.
          size: width and height in inches; the page scales the figure to its column.
        """
        with matplotlib.rc_context(STYLE):
            if (kind, size) not in self._axes:
                self._axes[kind, size] = _new_axes(*size)
            axes = self._axes[kind, size]
            paint(axes)
            drawn = io.StringIO()
            FigureCanvasSVG(axes.figure).print_svg(drawn, metadata={"Date": None, "Creator": None})
            for artist in (*axes.lines, *axes.images):
                artist.remove()
            axes.relim()
            axes.autoscale(True)
        self._figures += 1
        root = ElementTree.fromstring(drawn.getvalue())
        names = {name: f"f{self._figures}-{index}" for index, name in enumerate(_references(root))}
        inside = "".join(self._element(child, names) for child in root)
        return f'<svg role="img" aria-label="{text(label)}" viewBox="{root.get("viewBox")}">{inside}</svg>'

    def css(self) -> str:
        """The rules of the classes that the figures use."""
        return "\n".join(f".{name}{{{style}}}" for style, name in self._classes.items())

    def _element(self, node: ElementTree.Element, names: dict[str, str]) -> str:
        tag = node.tag.removeprefix(_SVG)
        if tag in _DROPPED or (tag == "defs" and node.find(f"{_SVG}style") is not None):
            return ""
        inside = "".join(self._element(child, names) for child in node)
        inside += escape((node.text or "").strip(), quote=False) if tag in ("text", "tspan") else ""
        attributes = self._attributes(node, names)
        if tag == "g" and not attributes:
            return inside
        if not inside and tag in ("g", "defs"):
            return ""
        return f"<{tag}{attributes}>{inside}</{tag}>" if inside else f"<{tag}{attributes}/>"

    def _attributes(self, node: ElementTree.Element, names: dict[str, str]) -> str:
        found = []
        for name, value in node.items():
            if name == "id":
                if value not in names:
                    continue
                value = names[value]
            elif name == "style":
                name, value = "class", self._class(value)
            elif name == _LINK:
                name, value = "href", "#" + names[value[1:]] if value[:1] == "#" else value.replace("\n", "")
            elif name == "clip-path":
                value = f"url(#{names[value[5:-1]]})"
            elif name == "d":
                value = _path(value)
            elif name == "transform":
                value = _NUMBER.sub(_two_digits, value).replace("rotate(-0 ", "rotate(0 ")
                if value.startswith("rotate(0 "):
                    continue
            else:
                value = _NUMBER.sub(_one_digit, value)
            found.append(f' {name}="{escape(value)}"')
        return "".join(found)

    def _class(self, style: str) -> str:
        style = re.sub(r"\s*([:;])\s*", r"\1", style)
        return self._classes.setdefault(style, f"s{len(self._classes)}")


def _new_axes(width: float, height: float) -> Any:
    """Axes on a figure of this size in inches, with room for the labels of the ticks."""
    figure = Figure(figsize=(width, height))
    figure.patch.set_visible(False)
    left, bottom, right, top = 0.52, 0.4, 0.09, 0.08
    inside = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    return figure.add_axes(inside)


def _references(root: ElementTree.Element) -> list[str]:
    """The ids that something in a figure refers to, in the order of their first use."""
    found: dict[str, None] = {}
    for node in root.iter():
        link, clip = node.get(_LINK, ""), node.get("clip-path", "")
        found |= {link[1:]: None} if link.startswith("#") else {}
        found |= {clip[5:-1]: None} if clip else {}
    return list(found)


def _path(text: str) -> str:
    """A path with one digit after the point; a polyline in steps from point to point, which are short."""
    text = " ".join(text.split())
    if re.fullmatch(r"M [-\d.e]+ [-\d.e]+( L [-\d.e]+ [-\d.e]+)+", text):
        numbers = [round(10 * float(word)) for word in re.findall(r"-?[\d.]+(?:e-?\d+)?", text)]
        x, y = numbers[0::2], numbers[1::2]
        parts = [f"M{_tenths(x[0])} {_tenths(y[0])}l"]
        steps = [value for i in range(1, len(x)) for value in (x[i] - x[i - 1], y[i] - y[i - 1])]
        return parts[0] + " ".join(map(_tenths, steps)).replace(" -", "-")
    return _NUMBER.sub(_one_digit, text)


def _tenths(value: int) -> str:
    return f"{value / 10:.1f}".removesuffix(".0").replace("0.", ".", 1) if abs(value) < 10 else f"{value / 10:g}"


def _one_digit(match: re.Match[str]) -> str:
    return f"{round(float(match[0]), 1) + 0.0:g}"


def _two_digits(match: re.Match[str]) -> str:
    return f"{round(float(match[0]), 2) + 0.0:g}"
