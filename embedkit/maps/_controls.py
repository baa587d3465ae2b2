"""The controls of the explorer, and how they are laid out.

Two rows stand above the map, so that it fits a laptop's screen.
"""

import asyncio
import io
from typing import Any

import ipywidgets as widgets
import jscatter
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from embedkit.maps._colors import PALETTE, Coloring, cut
from embedkit.maps._rows import Rows
from embedkit.maps._views import LARGE, Maps
from embedkit.maps.plotting import SIZE, plot

TRAVEL = 1.0  # seconds
SILENCE = 5.0  # seconds, in which every map that can be drawn has answered
_HELP = {
    "vectors": "The points travel to another map.",
    "color": "The column that gives the colors.",
    "map": "UMAP keeps neighbours, PCA the spread.",
    "n_neighbors": "Few show detail, many the whole.",
    "min_dist": "How close points may lie.",
    "metric": "What UMAP takes for near.",
    "find": "Enter selects the rows that contain this, among those that the filter leaves.",
    "filter": "Show the rows with some values of a column alone.",
    "compare": "A map of other vectors beside this one, colored by the neighbours both share.",
    "names": "Clusters of the map, called by their words, or by their commonest value.",
    "picture": "A still picture, where the map stays empty because the browser has no WebGL.",
    "density": "Lines round 30, 60 and 90 % of the points.",
}


def make_controls(
    rows: Rows, maps: Maps, color: str | None
) -> tuple[dict[str, Any], dict[str, widgets.Checkbox]]:
    """Make the menus and sliders, and the check boxes, by the names that stand beside them."""
    columns = [("none", None), *((str(name), name) for name in rows.scalars())]
    others = [("none", None), *((name, name) for name in maps.vectors)]
    n = len(maps.rows)
    methods = ["as given"] * bool(maps.known) + ["UMAP"] * (n > 3) + ["PCA"]
    metrics = ["cosine", "euclidean", "manhattan", "correlation"]
    most = max(15, min(200, n - 1))
    controls = {
        "vectors": widgets.Dropdown(options=list(maps.vectors)),
        "color": widgets.Dropdown(options=columns, value=color),
        "map": widgets.Dropdown(options=methods),
        "compare": widgets.Dropdown(options=others),
        "find": widgets.Text(placeholder="text", continuous_update=False),
        "filter": widgets.Dropdown(options=columns),
        "n_neighbors": widgets.IntSlider(value=15, min=2, max=most, continuous_update=False),
        "min_dist": widgets.FloatSlider(
            value=0.1, min=0, max=1, step=0.05, continuous_update=False
        ),
        "metric": widgets.Dropdown(options=metrics),
    }
    if not maps.known and n > LARGE:
        controls["map"].value = "PCA"  # UMAP would take minutes
    names = "regular expression", "names", "density", "picture", "settings of UMAP"
    switches = {name: widgets.Checkbox(indent=False) for name in names}
    for name, control in [*controls.items(), *switches.items()]:
        control.description = name
        # The second is its name before ipywidgets 8.
        place = "tooltip" if control.has_trait("tooltip") else "description_tooltip"
        setattr(control, place, _HELP.get(name, ""))
    return controls, switches


def make_filter(meaning: Coloring) -> Any:
    """Make the menu of a column's classes, or the range of its amounts."""
    if meaning.amounts is None:
        options = [(cut(name, 40), number) for number, name in enumerate(meaning.names)]
        only = widgets.SelectMultiple(options=options, rows=2)
    else:
        low, high = meaning.limits
        step = (high - low) / 100 or 1
        only = widgets.FloatRangeSlider(
            value=(low, high), min=low, max=high, step=step, continuous_update=False,
            readout_format=".3g",
        )  # fmt: skip
    only.description, only.layout.width, only.style.description_width = "only", "220px", "initial"
    return only


def draw_picture(points: NDArray[np.float32], meaning: Coloring) -> list[widgets.Widget]:
    """Draw the map as a still picture, with a sentence on why."""
    figure = Figure(figsize=SIZE, layout="constrained")
    few = len(meaning.names) <= len(PALETTE)
    labels = [meaning.names[number] if number >= 0 else None for number in meaning.classes]
    values = meaning.amounts if meaning.amounts is not None else labels if few else None
    plot(points, values, ax=figure.subplots())
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=150)
    sentence = (
        "The map above is drawn by WebGL. Where the browser has none, or it is switched off, it "
        "stays empty: this picture shows the same, but cannot be touched. <code>find</code>, the "
        "filter and <code>select</code> work all the same."
    )
    return [widgets.HTML(sentence), widgets.Image(value=written.getvalue(), width=700)]


def show_picture_without_webgl(explorer: Any, scatter: Any, switch: Any) -> None:
    """Switch the still picture on, where a page shows the explorer and its map stays silent.

    A map that can be drawn tells its place in the page. If it does so late, the picture is switched
    off again.
    """

    async def listen() -> None:
        await asyncio.sleep(SILENCE)
        if not scatter.dom_element_id:
            switch.value = True
            scatter.observe(lambda change: setattr(switch, "value", False), "dom_element_id")

    def opened(change: Any) -> None:
        if change["new"]:
            waiting.append(asyncio.get_running_loop().create_task(listen()))

    waiting: list[Any] = []  # asyncio forgets a task that nothing refers to
    explorer.observe(opened, "_view_count")
    explorer.set_trait("_view_count", 0)  # so that the page counts how often it shows it


def new_scatter(count: int, height: int) -> Any:
    """Make an empty map of so many points."""
    scatter = jscatter.Scatter(
        x=np.zeros(count), y=np.zeros(count), x_scale=(-1, 1), y_scale=(-1, 1), axes=False,
        reticle=False, height=height, size=float(np.clip(120 / count**0.5, 2, 6)),
        opacity_unselected=0.15, transition_points_duration=int(1000 * TRAVEL),
    ).show(["pan_zoom", "lasso", "full_screen", "reset"])  # fmt: skip
    # Where all points are the same, the page would search an empty space for labels, without end.
    scatter.x_domain = scatter.y_domain = [-1, 1]
    scatter.layout.flex, scatter.layout.min_width = "1 1 0", "0"
    return scatter


def arrange(
    controls: dict[str, Any], switches: dict[str, Any], parts: dict[str, Any], several: bool
) -> list[widgets.Widget]:
    """Lay out two rows of controls, the map with texts beside it, and the selection below."""
    row = {"flex_flow": "row wrap", "align_items": "center"}
    for control in controls.values():
        control.layout = {"width": "auto", "flex": "1 1 150px", "max_width": "260px"}
        control.style.description_width = "initial"
    for switch in switches.values():
        switch.layout = {"width": "auto", "margin": "0 0.8em 0 0"}
    parts["undo"].layout.width = "auto"
    drawn = [switches[name] for name in ("names", "density", "picture")]
    first = [controls["color"], controls["map"], *drawn]
    if several:
        first = [controls["vectors"], *first, controls["compare"]]
    settings = [controls[name] for name in ("n_neighbors", "min_dist", "metric")]
    umap = widgets.HBox(settings, layout={**row, "display": "none"})
    switches["settings of UMAP"].observe(
        lambda change: setattr(umap.layout, "display", "flex" if change["new"] else "none"), "value"
    )
    second = [
        controls["find"], switches["regular expression"], controls["filter"], parts["only"],
        parts["undo"], parts["answer"], parts["status"], parts["clock"],
    ]  # fmt: skip
    left = widgets.VBox([parts["maps"], parts["picture"], parts["legend"], parts["clusters"]])
    left.layout = {"flex": "1 1 400px", "min_width": "0"}
    right = widgets.VBox([parts["trust"], parts["hover"]])
    right.layout = {"flex": "0 0 250px", "margin": "0 0 0 1em"}
    return [
        widgets.HBox([*first, switches["settings of UMAP"]], layout=row),
        umap,
        widgets.HBox(second, layout=row),
        widgets.HBox([left, right]),
        parts["selection"],
    ]
