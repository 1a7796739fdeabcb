"""Data families. A family is one model here and one module of the same name in ``dmdpipe.data``.

A spec may ask for ``TRANSFORMATIONS`` of the family's samples.

Whatever the family, the prepared data are centred and divided by one number so that the mean variance of the
coordinates is σ_data² = 0.25 in every dimension (science: otherwise σ_max/σ_data would vary with d).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dmdpipe.specs.base import Spec, later

SIGMA_DATA = 0.5


class Ambient(Spec):
    """The coordinates in which samples x of k numbers are written: x ↦ E·x with a fixed E [dim, k], EᵀE = 1.

    rotated: E is the first k columns of a random rotation. permuted: of a random permutation of the axes.
    """

    dim: PositiveInt | None = Field(None, description="number of coordinates, k or more; none: k")
    axes: Literal["rotated", "permuted"] = "rotated"


class _Family(Spec):
    n_train: PositiveInt = Field(20_000, description="size of the stored training pool")
    n_held_out: PositiveInt = Field(2_000, description="size of the stored held-out set, never trained on")
    ambient: Ambient | None = later(None, description="other coordinates than the family's own, none: its own")

    @model_validator(mode="after")
    def _ambient_has_room(self) -> _Family:
        own = own_dimension(self)
        if self.ambient and self.ambient.dim is not None and self.ambient.dim < own:
            raise ValueError(f"ambient.dim ({self.ambient.dim}) must be at least the family's own dimension, {own}")
        return self


TRANSFORMATIONS = ("components", "law", "ambient")
"""Fields that change a family's samples, in the order in which they are applied; each is None by default.

The module of the same name in ``dmdpipe.data`` does it.
"""


LABELS = later(False, description="whether each sample's class is stored, so that networks can be asked for one")


class _Pixels(_Family):
    components: PositiveInt | None = later(
        None, description="leading principal components of the pool that are kept, in the images' own coordinates"
    )
    law: Literal["gaussian"] | None = later(
        None, description="gaussian: samples of the Gaussian with the pool's mean and covariance; exact score known"
    )

    @model_validator(mode="after")
    def _components_are_there(self) -> _Pixels:
        if self.components is not None and self.components > own_dimension(self):
            raise ValueError(
                f"components ({self.components}) must be at most the number of coordinates, {own_dimension(self)}"
            )
        return self


class _Images(_Pixels):
    n_images: PositiveInt | None = Field(
        None, description="distinct images behind the training pool: the first n of those there are; none: all"
    )
    half: Literal["both", "first", "second"] = Field(
        "both", description="which of two disjoint halves of the training images; held-out images are the same"
    )


class Digits(_Images):
    """scikit-learn's 8×8 digits (1,797 images), average-pooled to side×side; d = side²."""

    family: Literal["digits"] = "digits"
    side: Literal[1, 2, 4, 8] = 8
    dequantisation: float = Field(
        1.0, ge=0, le=1, description="width of the centred uniform noise, in grey levels (1/16)"
    )
    digit: int | None = later(None, ge=0, le=9, description="the one digit of which there are images; none: all ten")
    class_means: bool = later(
        False, description="whether the ten digits' mean images count as modes: a sample's class is the nearest one's"
    )
    labels: bool = LABELS

    @model_validator(mode="after")
    def _classes_are_of_images(self) -> Digits:
        if self.class_means and self.law is not None:
            raise ValueError(f"class_means are of images: leave them out with law '{self.law}'")
        if self.labels and (self.law is not None or self.digit is not None):
            raise ValueError("labels are of images of all ten digits: leave out law and digit, or the labels")
        return self


class Fashion(_Images):
    """Fashion-MNIST (70,000 images of 28×28), area-pooled to side×side; d = side²."""

    family: Literal["fashion"] = "fashion"
    side: int = Field(28, ge=1, le=28)
    dequantisation: float = Field(
        1.0, ge=0, le=1, description="width of the centred uniform noise, in grey levels (1/256)"
    )
    labels: bool = LABELS

    @model_validator(mode="after")
    def _labels_are_of_images(self) -> Fashion:
        if self.labels and self.law is not None:
            raise ValueError(f"labels are of images: leave them out with law '{self.law}'")
        return self


class Photos(_Pixels):
    """Colour patches of scikit-learn's two photos, one for training and one held out; d = 3·side²."""

    family: Literal["photos"] = "photos"
    side: int = Field(32, ge=1, le=64)
    dequantisation: float = Field(
        1.0, ge=0, le=1, description="width of the centred uniform noise, in grey levels (1/256)"
    )


class _OwnFile(_Pixels):
    name: str = Field(
        "own",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$",
        max_length=40,
        description="what own_data in config.yaml calls the file; where it lies is no part of a spec",
    )
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="checksum of the file; without it the data step refuses, naming it"
    )


class OwnImages(_OwnFile, _Images):
    """Square images of the user's: a folder of PNGs, or one array; area-pooled to side×side; d = side², or 3·side²."""

    family: Literal["own_images"] = "own_images"
    side: int = Field(32, ge=1, le=256)
    colour: bool = Field(False, description="whether the images have three channels")
    dequantisation: float = Field(
        1.0, ge=0, le=1, description="width of the centred uniform noise, in grey levels (1/256); none for floats"
    )


class OwnVectors(_OwnFile):
    """Vectors of the user's: one array; d = dim."""

    family: Literal["own_vectors"] = "own_vectors"
    dim: PositiveInt = 16


class Ring(_Family):
    """Gaussian modes, evenly spaced on a circle; d = 2; exact score known."""

    family: Literal["ring"] = "ring"
    modes: PositiveInt = 8
    spread: PositiveFloat = Field(0.05, description="standard deviation of a mode; the circle has radius 1")
    labels: bool = LABELS


class Moons(_Family):
    """Two interleaved half circles with Gaussian noise; d = 2."""

    family: Literal["moons"] = "moons"
    noise: PositiveFloat = Field(0.05, description="standard deviation; the half circles have radius 1")


class Checkerboard(_Family):
    """Uniform on the dark squares of a cells×cells board; d = 2."""

    family: Literal["checkerboard"] = "checkerboard"
    cells: int = Field(4, ge=2)


class SwissRoll(_Family):
    """A planar spiral of 1.5 turns with Gaussian noise; d = 2."""

    family: Literal["swiss_roll"] = "swiss_roll"
    noise: PositiveFloat = Field(0.02, description="standard deviation; the spiral ends at radius 1")


class Gaussian(_Family):
    """A centred Gaussian in any dimension; exact score known."""

    family: Literal["gaussian"] = "gaussian"
    dim: PositiveInt = 16
    spectrum: Literal["isotropic", "decaying"] = Field(
        "decaying", description="eigenvalues all equal, or 1/k for k = 1…d (before the common scaling)"
    )
    rotated: bool = Field(True, description="eigenvectors are a fixed random rotation, not the axes")


class Mixture(_Family):
    """Equal isotropic Gaussian modes at random directions in any dimension; exact score known."""

    family: Literal["mixture"] = "mixture"
    dim: PositiveInt = 16
    modes: PositiveInt = 8
    separation: PositiveFloat = Field(
        8.0,
        description="root mean square distance between two modes' centres, in standard deviations of a mode "
        "(centres lie at separation/√2 from the origin, in random directions)",
    )
    labels: bool = LABELS


DataSpec = Annotated[
    Digits | Fashion | Photos | OwnImages | OwnVectors | Ring | Moons | Checkerboard | SwissRoll | Gaussian | Mixture,
    Field(discriminator="family"),
]

FAMILIES: dict[str, type[_Family]] = {
    model.model_fields["family"].default: model
    for model in (
        Digits,
        Fashion,
        Photos,
        OwnImages,
        OwnVectors,
        Ring,
        Moons,
        Checkerboard,
        SwissRoll,
        Gaussian,
        Mixture,
    )
}


def dimension(data: DataSpec) -> int:
    """Return d, the number of coordinates of one sample."""
    return (data.ambient.dim if data.ambient else None) or own_dimension(data)


def own_dimension(data: _Family) -> int:
    """Return the number of coordinates in which the family itself writes a sample."""
    match data:
        case Digits() | Fashion():
            return data.side**2
        case Photos():
            return 3 * data.side**2
        case OwnImages():
            return (3 if data.colour else 1) * data.side**2
        case OwnVectors() | Gaussian() | Mixture():
            return data.dim
        case _:
            return 2


def class_count(data: DataSpec) -> int:
    """Return the number of classes of the stored labels; 0 where the spec asks for none."""
    if not getattr(data, "labels", False):
        return 0
    return data.modes if isinstance(data, Ring | Mixture) else 10


def transformations(data: _Family) -> tuple[str, ...]:
    """Return those of ``TRANSFORMATIONS`` that the spec asks for."""
    return tuple(name for name in TRANSFORMATIONS if getattr(data, name, None) is not None)


def are_images(data: DataSpec) -> bool:
    """Whether a sample's coordinates are the pixels of a square image (``dmdpipe.data.layout``)."""
    return data.family in ("digits", "fashion", "photos", "own_images") and data.ambient is None


def is_gaussian(data: DataSpec) -> bool:
    """Whether the samples are of one Gaussian whose covariance is known."""
    return data.family == "gaussian" or getattr(data, "law", None) == "gaussian"


def is_known(data: DataSpec) -> bool:
    """Whether the distribution, and so its score, is known in closed form."""
    return is_gaussian(data) or data.family in ("ring", "mixture")


def data_name(data: DataSpec) -> str:
    """Return a short readable name, e.g. ``digits-8x8-first-half-n50`` or ``rotated-gaussian-4-in-16``.

    Its first word is the family's where the coordinates are the family's own.
    """
    match data:
        case Digits() | Fashion() | OwnImages():
            own = f"-{data.name}" if isinstance(data, OwnImages) else ""
            half = "" if data.half == "both" else f"-{data.half}-half"
            few = "" if data.n_images is None else f"-n{data.n_images}"
            one = f"-only-{data.digit}" if isinstance(data, Digits) and data.digit is not None else ""
            name = f"{data.family}{own}-{data.side}x{data.side}{one}{half}{few}"
        case Photos():
            name = f"{data.family}-{data.side}x{data.side}"
        case OwnVectors():
            name = f"{data.family}-{data.name}-{data.dim}"
        case Gaussian():
            name = f"{data.family}-{data.dim}"
        case Mixture():
            apart = "" if data.separation == Mixture().separation else f"-separation-{data.separation:g}"
            name = f"{data.family}-{data.dim}{apart}"
        case _:
            name = data.family
    if isinstance(data, _Pixels):
        name += "" if data.components is None else f"-pca{data.components}"
        name += "" if data.law is None else f"-{data.law}"
    if data.ambient is None:
        return name
    room = "" if dimension(data) == own_dimension(data) else f"-in-{dimension(data)}"
    return f"{data.ambient.axes}-{name}{room}"
