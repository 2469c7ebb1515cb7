"""Taxonomies: what the labels of a dataset mean, which region owns which class, how its files are read.

Built-in ones are data, `manifests/datasets/<name>.yaml`; imported folders and lists get one from their labels.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.clip import check_dataset_name, shown
from pipeline.errors import UserError
from pipeline.spec import REGIONS

MANIFESTS = Path(__file__).resolve().parents[1] / "manifests"

_Id = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Coarse(_Frozen):
    """A body-level group of labels."""

    id: _Id
    name: _Name


class Label(_Frozen):
    """One class; `coarse` is the id of its group."""

    id: _Id
    name: _Name
    coarse: _Id


class Range(_Frozen):
    """Any number from least to most."""

    least: _Id
    most: _Id


Expected = _Id | tuple[_Id, ...] | Range  # a count, one of several, or a range


class Profile(_Frozen):
    """Official counts of a protocol: clips, distinct videos and subjects by split; split "all" counts every row."""

    rows: dict[str, Expected] = Field(default_factory=dict)
    videos: dict[str, Expected] = Field(default_factory=dict)
    subjects: dict[str, Expected] = Field(default_factory=dict)


class Size(_Frozen):
    """Clips of the whole dataset and frames of a mean clip, for estimates before anything is downloaded."""

    clips: _Id
    frames_per_clip: float


class Licence(_Frozen):
    """`tag` is the value of the manifest column license_tag; the rest is for people."""

    tag: Literal["gated-noncommercial", "research", "cc-by-4.0", "own", "unknown"] = "unknown"
    name: str = ""
    url: str = ""


def _region_order(experts: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    unknown = sorted(set(experts) - set(REGIONS))
    if unknown:
        raise ValueError(f"unknown region {unknown[0]!r}; the regions are {', '.join(REGIONS)}")
    return {region: tuple(sorted(set(experts.get(region, ())))) for region in REGIONS}


_Experts = Annotated[dict[str, tuple[_Id, ...]], AfterValidator(_region_order)]


def _names_only(entries: Any) -> bool:
    return isinstance(entries, list) and bool(entries) and all(isinstance(name, str) for name in entries)


class Taxonomy(_Frozen):
    """Labels, groups and expert classes of one label space, and how its dataset is imported.

    Attributes:
        labels, coarse: in id order without gaps. A list of plain names will do for either: ids in its order,
            all labels in one group.
        experts: region, in the order of `pipeline.spec.REGIONS`, -> ids of the classes its expert is
            pre-trained on (may be empty): the strict sets, as the authors have them where they say.
        expert_variants: name -> other such sets, e.g. "overlap".
        protocol: of rows whose adapter names none.
        adapter: module of `pipeline.datasets`; `options` are for it, `import --set` changes them.
        need_person: a row without a box track, and not `bbox_role: full_frame`, is an error.
        profiles: protocol -> official counts.
        page: where docs tell how to get the dataset and what is wrong with it; `tree` is what the root holds.
    """

    name: str
    title: str = ""
    label_space: _Name
    label_kind: Literal["single", "multi", "none"]
    labels: tuple[Label, ...] = ()
    coarse: tuple[Coarse, ...] = ()
    experts: _Experts = Field(default_factory=dict, validate_default=True)
    expert_variants: dict[_Name, _Experts] = Field(default_factory=dict)
    protocol: str = "custom"
    adapter: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    need_person: bool = False
    profiles: dict[str, Profile] = Field(default_factory=dict)
    size: Size | None = None
    tree: str = ""
    page: str = ""
    licence: Licence = Licence()
    citation: str = ""
    notes: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        try:
            return check_dataset_name(name)
        except UserError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _plain_lists(cls, data: Any) -> Any:
        """Names alone become labels or groups."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        labels, coarse = data.get("labels"), data.get("coarse")
        if _names_only(labels):
            data["labels"] = [{"id": i, "name": name, "coarse": 0} for i, name in enumerate(labels)]
            coarse = coarse or ["all"]
        if _names_only(coarse):
            data["coarse"] = [{"id": i, "name": name} for i, name in enumerate(coarse)]
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, entries in (("labels", self.labels), ("coarse", self.coarse)):
            ids = [entry.id for entry in entries]
            if ids != list(range(len(ids))):
                wrong = next(i for i, value in enumerate(ids) if i != value)
                raise ValueError(
                    f"{field}: ids must run 0, 1, 2, ... in order; entry {wrong} has {ids[wrong]}"
                )
            names = Counter(normalise_name(entry.name) for entry in entries)
            if len(names) < len(ids):
                raise ValueError(f"{field}: the name {shown(names.most_common(1)[0][0])!r} is given twice")
        for label in self.labels:
            if label.coarse >= len(self.coarse):
                raise ValueError(f"labels: label {label.id} is in group {label.coarse}, which coarse lacks")
        for variant, experts in {"experts": self.experts, **self.expert_variants}.items():
            for region, owned in experts.items():
                if owned and owned[-1] >= len(self.labels):
                    raise ValueError(f"{variant}.{region}: {owned[-1]} is not a label id")
        if (self.label_kind == "none") != (not self.labels):
            raise ValueError("label_kind is 'none' exactly when there are no labels")
        return self

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Normalised label name -> id."""
        return {normalise_name(label.name): label.id for label in self.labels}

    def id_of(self, name: str) -> int | None:
        """Id of the label with this name (blanks and Unicode forms do not matter), or None."""
        return self.ids.get(normalise_name(name))

    @cached_property
    def _folded(self) -> Mapping[str, int]:
        return {name.casefold(): label for name, label in self.ids.items()}

    def id_of_any_case(self, name: str) -> int | None:
        """Like id_of for sources that spell the same names with other capitals."""
        return self._folded.get(normalise_name(name).casefold())

    @property
    def link(self) -> str:
        """Where to read more, wherever the program runs: the page, else the command that says the same; or "" """
        return _link(self.name, self.page)

    def experts_of(self, variant: str = "strict") -> Mapping[str, tuple[int, ...]]:
        """Region -> classes of its expert. Raises UserError for a variant the dataset does not have."""
        if variant == "strict":
            return self.experts
        if variant not in self.expert_variants:
            known = ", ".join(("strict", *self.expert_variants))
            raise UserError(f"{self.name} has no expert classes {shown(variant)!r}; it has {known}")
        return self.expert_variants[variant]

    def coarse_of(self, label_id: int) -> int:
        """Id of the group of a label. Raises UserError for an id outside the label space."""
        if not 0 <= label_id < len(self.labels):
            raise UserError(
                f"label {label_id} is not in {self.label_space}, whose ids run 0 to {len(self.labels) - 1}"
            )
        return self.labels[label_id].coarse


@lru_cache
def _link(name: str, page: str) -> str:
    path = MANIFESTS.parent / page
    return page and (str(path) if path.is_file() else f"`bmoe-cache dataset show {name}`")


def normalise_name(name: str) -> str:
    """NFKC, single blanks, none at the ends: the form in which label names are compared."""
    return " ".join(unicodedata.normalize("NFKC", name).split())


def parse_taxonomy(data: Any, where: str) -> Taxonomy:
    """Check plain data (from YAML or JSON). Raises UserError naming `where` and the first wrong field."""
    try:
        return Taxonomy.model_validate(data)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False, include_input=False)
        field = shown(".".join(str(part) for part in first["loc"]))
        text = first["msg"].removeprefix("Value error, ")
        more = f" (and {len(others)} more)" if others else ""
        what = f"taxonomy field {field}" if field else "taxonomy"
        raise UserError(f"{where}: {what}: {text}{more}; correct it and try again") from None


def load_taxonomy(name: str, folder: Path | None = None) -> Taxonomy | None:
    """The built-in taxonomy of a dataset (`manifests/datasets/<name>.yaml`), or None when there is none.

    Raises UserError for a name that is not a plain dataset name or a file that does not hold a taxonomy.
    """
    check_dataset_name(name)
    path = (MANIFESTS / "datasets" if folder is None else folder) / f"{name}.yaml"
    if not path.is_file():
        return None
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a YAML file ({reason}); correct it and try again") from None
    taxonomy = parse_taxonomy(data, str(path))
    if taxonomy.name != name:
        raise UserError(f"{path}: field name is {taxonomy.name!r}; it must equal the file name, {name!r}")
    return taxonomy


def from_labels(
    dataset: str, names: Sequence[str], label_kind: Literal["single", "multi"] = "single"
) -> Taxonomy:
    """Taxonomy of an imported dataset: ids in the order of `names`, one group, no expert classes.

    Without names it is the unlabelled taxonomy. Raises UserError for empty or repeated names.
    """
    known = bool(names)
    return parse_taxonomy(
        {
            "name": dataset,
            "label_space": f"{dataset}{len(names)}" if known else "unlabelled",
            "label_kind": label_kind if known else "none",
            "labels": list(names),
        },
        f"labels of {dataset}",
    )
