# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The grid of a comparison: one YAML file that names datasets, splits, seeds, runs and the methods that are the table's
rows.

`docs/comparing.md` describes the file. All of it is checked before anything runs, the options of each run by its own
recipe.
"""

import contextlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from flip_ctr.benchmarks.comparison.recipes import RECIPES, Recipe, flags
from flip_ctr.data.datasets.synthetic import CatalogueSettings
from flip_ctr.train.outputs.plots import GROUPS
from flip_ctr.train.prepare import PrepareArguments

SECTIONS = ("datasets", "splits", "seeds", "settings", "common", "runs", "methods")
SOURCES = ("prepare", "catalogue", "dataset_dir")  # where a dataset comes from
SETTING = re.compile(r"\$\{(\w+)\}")
SPLIT_SEED = "split_seed"
REPEATS = (SPLIT_SEED, "split_fold")  # options in which splits of one kind differ


class GridError(ValueError):
    """Something in the grid is wrong; the message names file, section and key, and what would be right."""


@dataclass(frozen=True)
class Split:
    """Arguments of `prepare` that make one dataset folder; those that differ in seed or fold alone are of one kind, and
    averaged over."""

    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.named(self.options)

    @property
    def kind(self) -> str:
        return self.named({name: value for name, value in self.options.items() if name not in REPEATS})

    @staticmethod
    def named(options: dict[str, Any]) -> str:
        parts = (one for value in options.values() for one in (value if isinstance(value, list) else [value]))
        return "-".join(str(one).replace("/", "_") for one in parts) or "as-is"


@dataclass(frozen=True)
class Dataset:
    """`source` is one of `SOURCES`, `options` what stands under it; `targets` are the AUCs that time is measured to, by
    kind of split, or one for all of them (`None`)."""

    name: str
    source: str
    options: Any
    splits: tuple[Split, ...]
    targets: dict[str | None, float]

    def target(self, kind: str) -> float | None:
        return self.targets.get(kind, self.targets.get(None))


@dataclass(frozen=True)
class RunPlan:
    """A run as the grid describes it: the same for every split and seed.

    Attributes:
        options: of its recipe; `"@name"` stands for the output folder of another run.
        search: option -> values. Each combination is a trial, and validation chooses.
        prepare: options of `prepare` in place of the dataset's, such as `statistics: null`, for a run that is to see
            other columns of the same rows.
    """

    name: str
    recipe: str
    options: dict[str, Any]
    search: dict[str, list] = field(default_factory=dict)
    seed_offset: int = 0
    prepare: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> list[str]:
        """Names of the runs that this one starts from."""
        return list(dict.fromkeys(name for value in self.options.values() for name in references(value)))

    def trials(self) -> list[dict[str, Any]]:
        """The options of each trial; one where nothing is searched."""
        return [self.options | dict(zip(self.search, values)) for values in itertools.product(*self.search.values())]


@dataclass(frozen=True)
class Method:
    """A row of the table: a run under the name that people read. Differences are taken to the best of the `baseline`
    ones; `group` (a key of `GROUPS`) says its colour in pictures."""

    label: str
    run: str
    baseline: bool = False
    group: str = ""


@dataclass(frozen=True)
class Grid:
    path: Path
    datasets: tuple[Dataset, ...]
    seeds: tuple[int, ...]
    runs: dict[str, RunPlan]
    methods: tuple[Method, ...]

    def needed(self, methods: Iterable[Method]) -> set[str]:
        """Names of the runs of these methods, and of all that they start from."""
        found, todo = set(), [method.run for method in methods]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self.runs[name].inputs
        return found

    def num_trials(self, method: Method) -> int:
        """How many click models are trained for a method, those that it starts from too."""
        trained = [self.runs[name] for name in self.needed([method])]
        return sum(len(plan.trials()) for plan in trained if RECIPES[plan.recipe].trains_clicks)


def references(value: Any) -> Iterator[str]:
    """Names of the runs that an option refers to."""
    if isinstance(value, str) and value.startswith("@"):
        yield value[1:]
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def load_grid(
    path: str | Path, settings: dict[str, Any], only: list[str] | None = None, splits: list[str] | None = None
) -> Grid:
    """Reads and checks a grid.

    Args:
        settings: values that win over the grid's own `settings`.
        only: labels of the methods to keep; all where there are none.
        splits: names of the splits to keep, likewise.

    Raises:
        GridError: see there.
    """
    return _Reader(Path(path), settings, only, splits).read()


class _Reader:
    def __init__(self, path: Path, settings: dict[str, Any], only: list[str] | None, splits: list[str] | None):
        self.path, self.only, self.splits = path, only, splits
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise GridError(f"{path}: {error}") from error
        self.content = self.mapping(content, "the grid", SECTIONS)
        self.settings = self.mapping(self.content.get("settings") or {}, "settings")
        unknown = sorted(set(settings) - set(self.settings))
        if unknown:
            self.fail(
                "settings",
                f"--set {unknown[0]}: there is no such setting; there are {', '.join(self.settings) or 'none'}",
            )
        self.settings = self.settings | settings

    def fail(self, where: str, reason: str) -> None:
        raise GridError(f"{self.path}: {where}: {reason}.")

    def mapping(self, value: Any, where: str, allowed: Iterable[str] | None = None) -> dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self.fail(where, f"expected `name: value` lines, got {value!r}")
        unknown = sorted(set(value) - set(allowed)) if allowed is not None else []
        if unknown:
            self.fail(where, f"unknown key {', '.join(unknown)}; it may have {', '.join(allowed)}")
        return value

    def section(self, name: str) -> dict:
        if not self.content.get(name):
            self.fail(name, "the grid needs at least one")
        return self.mapping(self.content[name], name)

    def fill(self, value: Any, where: str) -> Any:
        """A value with its `${settings}`; one that is a setting and nothing else has that setting's type."""
        if isinstance(value, dict):
            return {key: self.fill(one, where) for key, one in value.items()}
        if isinstance(value, list):
            return [self.fill(one, where) for one in value]
        if not isinstance(value, str):
            return value
        for name in SETTING.findall(value):
            if name not in self.settings:
                self.fail(
                    where, f"${{{name}}}: there is no such setting; there are {', '.join(self.settings) or 'none'}"
                )
            if self.settings[name] is None:
                self.fail(where, f"the setting {name} has no value; give one with --set {name}=VALUE")
        whole = SETTING.fullmatch(value)
        return self.settings[whole[1]] if whole else SETTING.sub(lambda match: str(self.settings[match[1]]), value)

    # --- the sections

    def read(self) -> Grid:
        plans = {name: self.plan(name, given) for name, given in self.section("runs").items()}
        self.check_references(plans)
        methods = tuple(self.method(label, given, plans) for label, given in self.section("methods").items())
        if self.only:
            unknown = [label for label in self.only if label not in {method.label for method in methods}]
            if unknown:
                self.fail(
                    "methods",
                    f"--only {unknown[0]}: no such method; there are {', '.join(method.label for method in methods)}",
                )
            methods = tuple(method for method in methods if method.label in self.only)
        seeds = self.content.get("seeds", [42])
        if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
            self.fail("seeds", f"expected a list of whole numbers, got {seeds!r}")
        if len(set(seeds)) < len(seeds):
            self.fail("seeds", f"two are the same in {seeds!r}")
        grid = Grid(self.path, (), tuple(seeds), plans, methods)
        common = self.common()
        for name in grid.needed(methods):  # settings of the others need no value
            plans[name] = self.resolved(plans[name], common)
        datasets = tuple(self.dataset(name, given) for name, given in self.section("datasets").items())
        if self.splits:
            names = list(dict.fromkeys(split.name for dataset in datasets for split in dataset.splits))
            unknown = [name for name in self.splits if name not in names]
            if unknown:
                self.fail("splits", f"--splits {unknown[0]}: no such split; there are {', '.join(names)}")
            kept = (
                replace(one, splits=tuple(split for split in one.splits if split.name in self.splits))
                for one in datasets
            )
            datasets = tuple(one for one in kept if one.splits)
        for name in grid.needed(methods):
            for dataset in datasets if plans[name].prepare else ():
                options = dataset.options | plans[name].prepare
                for split in dataset.splits:
                    self.check_source("prepare", options, split, f"runs: {name}")
        return Grid(self.path, datasets, tuple(seeds), plans, methods)

    def common(self) -> dict:
        common = self.mapping(self.content.get("common") or {}, "common")
        for name in common:
            if not any(name in recipe.options for recipe in RECIPES.values() if recipe.of_package):
                self.fail("common", f"no recipe of flip-ctr has an option {name}")
        return common

    def plan(self, name: str, given: Any) -> RunPlan:
        where = f"runs: {name}"
        options = dict(self.mapping(given, where))
        recipe = options.pop("recipe", None)
        if recipe not in RECIPES:
            self.fail(where, f"recipe must be one of {', '.join(RECIPES)}; got {recipe!r}")
        search = self.mapping(options.pop("search", {}), f"{where}: search")
        for option, values in search.items():
            if not isinstance(values, list) or not values:
                self.fail(f"{where}: search", f"{option} must be a list of values to try, got {values!r}")
            if any(references(values)):
                self.fail(f"{where}: search", f"{option} cannot be another run; name each as a run of its own")
        if search and not RECIPES[recipe].predicts:
            self.fail(where, f"search needs predictions to choose by, and {recipe} makes none")
        offset = options.pop("seed_offset", 0)
        if not isinstance(offset, int):
            self.fail(where, f"seed_offset must be a whole number; got {offset!r}")
        prepare = self.mapping(options.pop("prepare", {}), f"{where}: prepare")
        if prepare and not all("prepare" in self.mapping(one, "datasets") for one in self.section("datasets").values()):
            self.fail(f"{where}: prepare", "it is for datasets that `prepare` makes")
        return RunPlan(name, recipe, options, search, offset, prepare)

    def check_references(self, plans: dict[str, RunPlan]) -> None:
        def visit(name: str, above: tuple[str, ...]) -> None:
            if name in above:
                self.fail("runs", f"{' -> '.join((*above[above.index(name) :], name))} is a circle")
            for one in plans[name].inputs:
                if one not in plans:
                    self.fail(f"runs: {name}", f"@{one}: there is no such run; there are {', '.join(plans)}")
                visit(one, (*above, name))

        for name in plans:
            visit(name, ())

    def method(self, label: str, given: Any, plans: dict[str, RunPlan]) -> Method:
        where = f"methods: {label}"
        given = {"run": given} if isinstance(given, str) else self.mapping(given, where, ("run", "baseline", "group"))
        if given.get("run") not in plans:
            self.fail(where, f"run must be one of {', '.join(plans)}; got {given.get('run')!r}")
        if not RECIPES[plans[given["run"]].recipe].predicts:
            self.fail(where, f"the run {given['run']} makes no predictions")
        if not isinstance(given.get("baseline", False), bool):
            self.fail(where, f"baseline must be true or false; got {given['baseline']!r}")
        if given.get("group", "") not in list(GROUPS):
            self.fail(where, f"group must be one of {', '.join(filter(None, GROUPS))}; got {given['group']!r}")
        return Method(label, **given)

    def resolved(self, plan: RunPlan, common: dict) -> RunPlan:
        """The plan with settings and common options filled in, after its recipe has read the options of every trial."""
        where, recipe = f"runs: {plan.name}", RECIPES[plan.recipe]
        shared = {name: value for name, value in common.items() if recipe.of_package and name in recipe.options}
        options = self.fill(shared | plan.options, where)
        plan = replace(plan, options=options, search=self.fill(plan.search, where))
        for trial in plan.trials():
            self.check_options(recipe, trial, where)
        return plan

    def check_options(self, recipe: Recipe, options: dict, where: str) -> None:
        given = sorted(set(options) & {"dataset_dir", "output_dir", "seed"})
        if given:
            self.fail(where, f"{given[0]} is not for a run to say: datasets and seeds stand in sections of their own")
        unknown = sorted(set(options) - recipe.options)
        if unknown:
            self.fail(where, f"{recipe.name} has no option {unknown[0]}; it has {', '.join(sorted(recipe.options))}")
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                recipe.parse(flags({"dataset_dir": "DATASET", "output_dir": "OUTPUT"} | options))
        except SystemExit:
            self.fail(where, said.getvalue().strip().splitlines()[-1].split("error: ")[-1].rstrip("."))

    def dataset(self, name: str, given: Any) -> Dataset:
        where = f"datasets: {name}"
        given = self.mapping(given, where, (*SOURCES, "splits", "target_auc"))
        source = [one for one in SOURCES if one in given]
        if len(source) != 1:
            self.fail(where, f"it needs one of {', '.join(SOURCES)}; got {', '.join(source) or 'none'}")
        options = self.fill(given[source[0]], where)
        splits = given.get("splits", [{}] if source[0] == "dataset_dir" else self.content.get("splits", [{}]))
        if not isinstance(splits, list) or not splits:
            self.fail(f"{where}: splits", f"expected a list, got {splits!r}")
        splits = tuple(Split(self.mapping(one, f"{where}: splits")) for one in splits)
        for split in splits:
            self.check_source(source[0], options, split, where)
        if len({split.name for split in splits}) < len(splits):
            self.fail(f"{where}: splits", "two are the same")
        targets = given.get("target_auc")
        where = f"{where}: target_auc"
        if isinstance(targets, dict):
            self.mapping(targets, where, dict.fromkeys(split.kind for split in splits))
        else:
            targets = {} if targets is None else {None: targets}
        return Dataset(
            name, source[0], options, splits, {kind: self.target(one, where) for kind, one in targets.items()}
        )

    def target(self, given: Any, where: str) -> float:
        try:
            target = float(self.fill(given, where))  # YAML reads 86e-2 as text
        except (TypeError, ValueError):
            target = 0.0
        if not 0 < target < 1:
            self.fail(where, f"expected an AUC, a number above 0 and below 1; got {given!r}")
        return target

    def check_source(self, source: str, options: Any, split: Split, where: str) -> None:
        try:
            if source == "prepare":
                known = [
                    one.name
                    for one in fields(PrepareArguments)
                    if one.name not in ("output_dir", "overwrite_output_dir", "infer_schema")
                ]
                self.mapping(split.options, f"{where}: splits", known)
                given = self.mapping(options, f"{where}: prepare", known) | split.options
                given = {name: value for name, value in given.items() if value is not None}
                PrepareArguments(**given, output_dir="OUTPUT")
            elif source == "catalogue":
                CatalogueSettings(**self.mapping(options or {}, f"{where}: catalogue"))
                self.mapping(split.options, f"{where}: splits", ("split", SPLIT_SEED))
            elif split.options:
                self.fail(where, "dataset_dir is a folder with its splits; they cannot be made anew")
        except (TypeError, ValueError) as error:
            if isinstance(error, GridError):
                raise
            self.fail(f"{where}: {source}", str(error).rstrip("."))
