"""`lookwire-server check`: what is wrong with the models of a repository, said without serving them."""

import ast
import asyncio
import logging
import re
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import structlog

from lookwire_server.errors import LookwireError
from lookwire_server.metrics import Metrics
from lookwire_server.models import config_file
from lookwire_server.models.backends.onnxruntime import OnnxRuntimeBackend
from lookwire_server.models.config import ModelConfig, Step, warnings
from lookwire_server.models.loader import Backend, LoadRefused
from lookwire_server.models.repository import ControlMode, Repository
from lookwire_server.models.source import is_model, scan, version_number

# Backend -> the file in a version folder that it reads. An ensemble and an identity model have none.
MODEL_FILES = {
    "onnxruntime": "model.onnx",
    "python": "model.py",
    "encoder": "manifest.json",
    "ensemble": "",
    "identity": "",
}
UNKNOWN_NAME = re.compile(r'(?:Message|Enum) type "([\w.]+)" has no (?:field|value) named "?(\w+)"?')


@dataclass(slots=True)
class Report:
    """What was found about one model: errors keep it from being served, warnings do not."""

    model: str
    config: ModelConfig | None = None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_repository(root: Path, more_backends: Mapping[str, Backend] | None = None) -> int:
    """Prints what is wrong with the models below `root`; the exit status: 0 nothing, 1 something, 2 no such folder.

    Models of `more_backends`, and ONNX models, are loaded one after the other, and not served.
    """
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    if not root.is_dir():
        sys.stderr.write(f"'{root}' is no folder; name the folder that holds the models\n")
        return 2
    reports = check(root, more_backends or {})
    for report in reports:
        for kind, problems in (("error", report.errors), ("warning", report.warnings)):
            sys.stdout.writelines(f"{kind}: {report.model}: {problem}\n" for problem in problems)
    errors, warned = sum(len(report.errors) for report in reports), sum(len(report.warnings) for report in reports)
    models = sum(report.config is not None or bool(report.errors) for report in reports)
    if not models:
        sys.stdout.write(f"error: '{root}' holds no model: no <model>/config.pbtxt and no <model>/<version>/\n")
        return 1
    sys.stdout.write(f"{counted(models, 'model')}, {counted(errors, 'error')}, {counted(warned, 'warning')}\n")
    return 1 if errors else 0


def check(root: Path, more_backends: Mapping[str, Backend]) -> list[Report]:
    """A report on each folder below `root`, by name."""
    reports = {
        path.name: read(path) for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")
    }
    for report in reports.values():
        if report.config:
            report.errors += wrong_steps(report.config, reports)
    backends = {"onnxruntime": OnnxRuntimeBackend(1), **more_backends}
    asyncio.run(load(root, reports, backends))
    return list(reports.values())


def read(directory: Path) -> Report:
    """What can be said of a model by its own folder."""
    report = Report(directory.name)
    try:
        if not is_model(directory):
            report.warnings.append("no model: the folder has no config.pbtxt and no version folder, and is ignored")
            return report
        config = config_file.read(directory)
        source = scan(directory)
        report.warnings += [
            f"the folder '{entry.name}' is ignored: a version's name is an integer without leading zeros"
            for entry in sorted(directory.iterdir())
            if entry.is_dir() and entry.name.isdigit() and version_number(entry.name) is None
        ]
        report.config = config
        report.warnings += warnings(config.message)
        if config.backend not in MODEL_FILES:
            near = did_you_mean(config.backend, MODEL_FILES)
            report.errors.append(f"backend '{config.backend}' is not one of {', '.join(MODEL_FILES)}.{near}")
            return report
        for version in sorted(set(config.message.version_policy.specific.versions).difference(source.versions)):
            report.warnings.append(f"version_policy names version {version}, but there is no folder '{version}'")
        for version in source.selected(config):
            report.errors += wrong_file(config, directory / str(version))
    except (LookwireError, OSError) as error:
        report.errors.append(f"{error}{hint(str(error), directory)}")
    return report


def wrong_file(config: ModelConfig, directory: Path) -> list[str]:
    """What is wrong with the model file of a version, as far as it shows without loading it."""
    file = config.message.default_model_filename or MODEL_FILES[config.backend]
    if not file:
        return []
    path = directory / file
    if not path.exists():
        found = ", ".join(sorted(entry.name for entry in directory.iterdir())) or "nothing"
        return [f"{path} does not exist; the folder holds {found}"]
    if config.backend == "python":
        try:
            ast.parse(path.read_bytes(), path)
        except (SyntaxError, ValueError) as error:
            line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
            return [f"{path}{line}: not Python: {error}"]
    return []


def wrong_steps(config: ModelConfig, reports: Mapping[str, Report]) -> list[str]:
    """The steps of an ensemble that name models, versions or tensors which are not there."""
    problems = []
    for number, step in enumerate(config.steps, 1):
        place = f"step {number} of ensemble_scheduling"
        report = reports.get(step.model)
        if report is None:
            problems.append(f"{place}: there is no model '{step.model}'.{did_you_mean(step.model, reports)}")
        elif report.config:
            problems += [f"{place}: {problem}" for problem in wrong_tensors(step, report.config)]
    return problems


def wrong_tensors(step: Step, model: ModelConfig) -> list[str]:
    """The tensors that a step maps and its model does not declare; a model that declares none is completed when loaded."""
    problems = []
    for kind, mapped, specs in (("input", step.inputs, model.inputs), ("output", step.outputs, model.outputs)):
        declared = [spec.name for spec in specs]
        problems += [
            f"{kind}_map: model '{model.name}' has no {kind} '{name}', it has {', '.join(declared)}."
            f"{did_you_mean(name, declared)}"
            for name in mapped
            if declared and name not in declared
        ]
    problems += [
        f"input_map: input '{spec.name}' of model '{model.name}' is missing"
        for spec in model.inputs
        if not spec.optional and spec.name not in step.inputs
    ]
    return problems


async def load(root: Path, reports: Mapping[str, Report], backends: Mapping[str, Backend]) -> None:
    """Loads, one after the other, what looks right so far and runs no code of its author."""

    def loadable(name: str, above: tuple[str, ...] = ()) -> bool:
        report = reports.get(name)
        return (
            report is not None
            and report.config is not None
            and not report.errors
            and report.config.backend in backends
            and name not in above
            and all(loadable(step.model, (*above, name)) for step in report.config.steps)
        )

    faults: list[str] = []
    repository = Repository([root], backends, Metrics(), faults.append, mode=ControlMode.EXPLICIT)
    try:
        await repository.start()
        for name in [name for name in reports if loadable(name)]:
            try:
                await repository.load_model(name)
                await repository.unload_model(name, dependents=True)
            except LoadRefused as error:
                place = f"version {error.version}: " if error.version is not None else ""
                reports[name].errors.append(f"{place}{error.cause}")
            except LookwireError as error:
                reports[name].errors.append(str(error))
    finally:
        await repository.close()


def hint(error: str, directory: Path) -> str:
    """What a name that the config format does not know may have been meant to be."""
    match = UNKNOWN_NAME.search(error)
    if not match:
        return ""
    place, name = match.groups()
    known = vocabulary(config_file.from_json('{"backend": "identity"}', directory).message.DESCRIPTOR)
    _, names = known.get(place, ("", []))
    owners = [owner for owner, names in known.values() if name in names]
    return did_you_mean(name, names) or (f" '{name}' is a field of {' and of '.join(owners)}." if owners else "")


def vocabulary(descriptor: Any) -> dict[str, tuple[str, list[str]]]:
    """The messages and enumerations of the config format: the field that each stands in first, and the names it knows."""
    known: dict[str, tuple[str, list[str]]] = {}
    todo = deque([("", descriptor)])
    while todo:
        place, message = todo.popleft()
        if message.full_name in known:
            continue
        known[message.full_name] = (place, [item.name for item in message.fields])
        for item in message.fields:
            if item.message_type:
                todo.append((f"{place}.{item.name}".lstrip("."), item.message_type))
            if item.enum_type:
                known[item.enum_type.full_name] = (item.name, [value.name for value in item.enum_type.values])
    return known


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest of the known names; empty if none is near."""
    near = get_close_matches(name, list(known), 1)
    return f" Did you mean '{near[0]}'?" if near else ""


def counted(number: int, noun: str) -> str:
    """The number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
