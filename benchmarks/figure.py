"""Figure: panels in rows, written without a display. matplotlib is imported where it is used: a GPU may lack it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], None]
SMALL: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 8,
    "figure.titlesize": 8,
    "legend.fontsize": 6,
    "savefig.dpi": 100,
}


def unavailable() -> str | None:
    """Why there can be no figure, or None."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return "matplotlib is not installed: no figure"
    return None


def save(
    path: Path,
    panels: Sequence[Draw],
    size: tuple[float, float],
    *,
    title: str = "",
    columns: int = 0,
    style: dict[Any, Any] = SMALL,
) -> None:
    """Each panel draws on axes of its own. size: inches of the whole; columns: all panels in one row where 0."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = columns or len(panels)
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        for i, draw in enumerate(panels):
            draw(figure.add_subplot(-(-len(panels) // columns), columns, i + 1))
        if title:
            figure.suptitle(title)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor="white")
