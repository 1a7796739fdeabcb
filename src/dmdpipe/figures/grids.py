"""Paired grids: the same noise through teacher and student, side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap

from dmdpipe.figures import marks, style, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE_FAMILIES = ("digits", "fashion", "own_images")
HEADLINE = "The same noise through teacher and student"
MAX_IMAGE_ROWS = 10
MAX_JOINED = 80

_ANGLES = LinearSegmentedColormap.from_list(
    "angles", [style.BLUE, style.GREEN, style.ORANGE, style.VERMILLION, style.PURPLE, style.BLUE]
)


@style.styled
def paired_grid(gallery: pd.DataFrame, results: pd.DataFrame | None = None) -> tuple[Figure, pd.DataFrame]:
    """Draw what teacher and student make of the same noise, for every start in the table.

    Images: a block per start, a row per noise z_i, T(z_i) at the left and S(z_i) at the right. Other data: a
    row of panels per start, T(z) and S(z) as clouds, each point in the colour of *its teacher sample's* angle
    (a copying student shows the same colours in the same places), and lines from T(z_i) to S(z_i); more than
    two dimensions are projected on the two leading principal components of the teacher's samples.

    Args:
        gallery: paired samples of one study, data set and σ_max, of one seed.
        results: tidy results; if given, each start is titled with its seed's ρ at the read-out.

    Returns:
        The figure, and its data: columns point, start, row, role, and x0 … (pixels, or the two
        coordinates in the plane).
    """
    samples = _samples(gallery)
    titles = _titles(gallery, results)
    data = str(gallery["data"].iloc[0])
    if gallery["family"].iloc[0] in IMAGE_FAMILIES:
        figure, table = _images(samples, titles)
    else:
        figure, table = _clouds(samples, titles)
    sigma_max = gallery["sigma_max"].iloc[0]
    marks.headline(figure, HEADLINE, f"{data}, σ_max = {sigma_max:g}")
    return figure, table


@style.styled
def grid_of_pairs(
    teacher: np.ndarray, student: np.ndarray, title: str, about: str, *, images: bool
) -> tuple[Figure, pd.DataFrame]:
    """Draw T(z) and S(z), both [n, d], of one student, as ``paired_grid`` does.

    Args:
        teacher: of the noise z_i in row i.
        student: likewise.
        title: of the student.
        about: of what these samples are, for the headline.
        images: whether a row is an image: side×side pixels, or side×side×3 with a pixel's channels side by side.

    Returns:
        As ``paired_grid``.
    """
    draw = _images if images else _clouds
    figure, table = draw({title: (teacher, student)}, {title: title})
    marks.headline(figure, HEADLINE, about)
    return figure, table


def _samples(gallery: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return teacher and student arrays [n, d] of every point, by start and in the noise's order."""
    result = {}
    points = gallery.drop_duplicates("point").sort_values("point")
    for point in points.sort_values("init", key=lambda inits: inits.map(style.init_rank), kind="stable")["point"]:
        rows = gallery[gallery["point"] == point].sort_values("row")
        teacher, student = (
            np.stack(rows.loc[rows["role"] == role, "x"].tolist()).astype(float) for role in ("teacher", "student")
        )
        result[point] = (teacher, student)
    return result


def _titles(gallery: pd.DataFrame, results: pd.DataFrame | None) -> dict[str, str]:
    points = gallery.drop_duplicates("point")
    names = dict(zip(points["point"], tables.series_of(points, "recipe", apart=["sigma_max"]), strict=True))
    if results is None:
        return names
    keys = ["study", "point", "seed"]
    for row in points[keys].merge(tables.at_readout(results, "rho"), on=keys).to_dict("records"):
        names[row["point"]] += f"\nρ = {row['value']:.2f}" + ("" if row["converged"] else ", not converged")
    return names


def _images(samples: dict[str, tuple[np.ndarray, np.ndarray]], titles: dict[str, str]) -> tuple[Figure, pd.DataFrame]:
    teachers = np.concatenate([teacher for teacher, _ in samples.values()])
    shape = _shape_of_image(teachers.shape[1])
    low, high = np.percentile(teachers, (1, 99))
    n = min(MAX_IMAGE_ROWS, min(len(teacher) for teacher, _ in samples.values()))
    block = 1.55
    figure = style.new_figure(max(5.5, block * len(samples) + 0.5), 0.66 * n + 1.9)
    all_axes = figure.subplots(1, len(samples), squeeze=False)[0]
    frames = []
    for axes, (point, pair) in zip(all_axes, samples.items(), strict=True):
        # matplotlib scales grey levels itself, but takes colours as they are.
        levels = pair if len(shape) == 2 else [((x - low) / (high - low)).clip(0, 1) for x in pair]
        shown = [images[:n].reshape(n, *shape) for images in levels]
        for column, images in enumerate(shown):
            for row, image in enumerate(images):
                box = (column * 1.06, column * 1.06 + 1.0, row * 1.06 + 1.0, row * 1.06)
                axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=box, interpolation="nearest")
        axes.set(xlim=(0, 2.06), ylim=(1.06 * n - 0.06, 0), aspect="equal")
        axes.set_xticks([0.5, 1.56], labels=["T(z)", "S(z)"])
        axes.xaxis.tick_top()
        axes.set_yticks([1.06 * row + 0.5 for row in range(n)], labels=[f"z{row + 1}" for row in range(n)])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_title(titles[point], fontsize=9)
        if axes is not all_axes[0]:
            axes.set_yticklabels([])
        frames += [_frame(point, titles[point], role, images[:n]) for role, images in zip(_ROLES, pair, strict=True)]
    return figure, pd.concat(frames, ignore_index=True)


def _shape_of_image(dim: int) -> tuple[int, ...]:
    """Return (side, side) if d is a square, else (side, side, 3): 3·side² is never one."""
    side = math.isqrt(dim)
    return (side, side) if side**2 == dim else (math.isqrt(dim // 3), math.isqrt(dim // 3), 3)


_ROLES = ("teacher", "student")


def _clouds(samples: dict[str, tuple[np.ndarray, np.ndarray]], titles: dict[str, str]) -> tuple[Figure, pd.DataFrame]:
    teachers = np.concatenate([teacher for teacher, _ in samples.values()])
    plane, centre = _leading_plane(teachers)
    width = 3.0
    figure = style.new_figure(width * 3 + 0.6, width * len(samples) + 0.7)
    grid = figure.subplots(len(samples), 3, squeeze=False, sharex=True, sharey=True)
    reach = 1.15 * float(np.abs((teachers - centre) @ plane).max())
    frames = []
    for row, (point, pair) in zip(grid, samples.items(), strict=True):
        teacher, student = ((x - centre) @ plane for x in pair)
        hue = _ANGLES(np.arctan2(teacher[:, 1], teacher[:, 0]) / (2 * np.pi) % 1.0)
        for axes, x, title in ((row[0], teacher, "teacher T(z)"), (row[1], student, "student S(z)")):
            axes.scatter(x[:, 0], x[:, 1], c=hue, s=9, linewidths=0)
            axes.set_title(title)
        row[2].set_title("from T(z) to S(z)")
        for a, b, colour in zip(teacher[:MAX_JOINED], student[:MAX_JOINED], hue, strict=False):
            row[2].plot([a[0], b[0]], [a[1], b[1]], color=colour, linewidth=0.8, alpha=0.8)
        row[2].scatter(*student[:MAX_JOINED].T, c=hue[:MAX_JOINED], s=12, linewidths=0)
        row[0].set_ylabel("start: " + titles[point], fontweight="bold")
        for axes in row:
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
            axes.tick_params(labelbottom=False, labelleft=False, length=0)
        frames += [_frame(point, titles[point], role, x) for role, x in zip(_ROLES, (teacher, student), strict=True)]
    return figure, pd.concat(frames, ignore_index=True)


def _leading_plane(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an orthonormal basis [d, 2] of the two leading principal components, and the centre [d]."""
    if x.shape[1] == 2:
        return np.eye(2), np.zeros(2)
    centre = x.mean(axis=0)
    plane = np.linalg.svd(x - centre, full_matrices=False)[2][:2].T
    signs = np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]])
    return plane * signs, centre


def _frame(point: str, title: str, role: str, x: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
    table.insert(0, "role", role)
    table.insert(0, "row", np.arange(len(x)))
    table.insert(0, "start", title.split("\n")[0])
    table.insert(0, "point", point)
    return table
