"""Running a plan: every cell that is not finished yet, then the reports."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from deltakit.compare.plan.draft import draft_of
from deltakit.compare.plan.plan import Plan
from deltakit.compare.plan.request import request_of
from deltakit.compare.plan.resolve import complete_plan
from deltakit.compare.records.latency import ShapeTime
from deltakit.compare.records.result import CellResult
from deltakit.compare.records.run import RunRecord
from deltakit.compare.records.training import EvalPoint
from deltakit.compare.records.trial import Choice
from deltakit.compare.report.page import CellExtras
from deltakit.compare.report.write import write_reports
from deltakit.compare.results import Evaluated, Results
from deltakit.compare.run.description import describe
from deltakit.compare.run.engines import Engine, Local, engine_for
from deltakit.compare.run.failures import Failures
from deltakit.compare.run.progress import Progress, Silent
from deltakit.compare.sizes import (
    ResultsBySize,
    check_curve,
    folders_of,
    plans_by_size,
    sizes_in,
    write_sizes,
)
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.store.join_runs import join
from deltakit.compare.store.run_folder import RunFolder, as_begun, open_run
from deltakit.core.method import Method
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    Methods = str | Method | Sequence[str | Method] | Mapping[str, str | Method]


@overload
def compare(
    methods: "Methods | Plan | None" = None,
    *,
    plan: Plan | None = None,
    out: str | Path | None = None,
    engine: str | Engine | None = None,
    workers: int | None = None,
    failures: Failures = Failures.KEEP,
    progress: Progress | None = None,
    train_sizes: None = None,
    equal_steps: None = None,
    **settings: Any,
) -> Results: ...


@overload
def compare(
    methods: "Methods | Plan | None" = None,
    *,
    plan: Plan | None = None,
    out: str | Path | None = None,
    engine: str | Engine | None = None,
    workers: int | None = None,
    failures: Failures = Failures.KEEP,
    progress: Progress | None = None,
    train_sizes: Sequence[int],
    equal_steps: bool | None = None,
    **settings: Any,
) -> ResultsBySize: ...


def compare(
    methods: "Methods | Plan | None" = None,
    *,
    plan: Plan | None = None,
    out: str | Path | None = None,
    engine: str | Engine | None = None,
    workers: int | None = None,
    failures: Failures = Failures.KEEP,
    progress: Progress | None = None,
    train_sizes: Sequence[int] | None = None,
    equal_steps: bool | None = None,
    **settings: Any,
) -> Results | ResultsBySize:
    """Trains and measures methods on one task, as ``deltakit compare`` does.

    The same call goes on where an earlier one stopped.

    Args:
        methods: specs such as ``"lora[rank=16]"``, methods such as ``dk.LoRA(rank=16)``, or a
            mapping from labels to either. A `Plan` is run as it is.
        plan: a plan, in place of `methods` and `settings`.
        out: the run folder; by default one under ``runs``.
        engine: the place where cells run: "local" (this process), "processes" or "ray".
        workers: how many cells run at a time, where the engine takes several.
        failures: what is done about cells that failed in an earlier run.
        progress: told what happens.
        train_sizes: numbers of training examples, such as ``[100, 500, 2000]``. Each is a run of
            its own, and the answer is a `ResultsBySize`.
        equal_steps: whether each of the sizes is trained for as many steps as the largest one.
        settings: the options of ``deltakit compare`` with underscores: ``model``, ``task``,
            ``seeds``, ``trials``, ``epochs``, ``weights``, ``imports``, ...

    Raises:
        InvalidConfig: a setting that does not exist or does not fit, or a folder of another plan.
        DeltakitError: whatever else is wrong; nothing has been trained then.
    """
    place = engine if isinstance(engine, Engine) else engine_for(engine or Local.name, workers)
    chosen = plan or (methods if isinstance(methods, Plan) else None)
    folder = None if out is None else Path(out)
    check_curve(train_sizes, equal_steps)
    if chosen is not None:
        curve = {} if train_sizes is None else {"train_sizes": train_sizes}
        _check_alone({**settings, **curve}, plan is not None and methods is not None)
        place.prepare()
        return run_plan(chosen, folder, progress, engine=place, failures=failures)
    request = request_of(() if methods is None else methods, settings)
    if train_sizes is not None:
        plans = plans_by_size(request, train_sizes, settings, bool(equal_steps), place)
        return _compare_sizes(plans, folder, progress, place, failures)
    draft = draft_of(request)
    place.prepare()
    return run_plan(complete_plan(draft), folder, progress, engine=place, failures=failures)


def _check_alone(settings: Mapping[str, Any], methods: bool) -> None:
    """Raises `InvalidConfig` where a plan is given with settings or methods."""
    if settings or methods:
        raise InvalidConfig(
            "a plan has its methods and settings already. Leave out "
            f"{', '.join(settings) or 'the methods'}, or build another plan."
        )


def _compare_sizes(
    plans: Mapping[int, Plan],
    out: Path | None,
    progress: Progress | None,
    place: Engine,
    failures: Failures,
) -> ResultsBySize:
    """Runs a plan for each size, and writes what is over all of them."""
    whole, folders = folders_of(plans, out)
    runs = {
        size: run_plan(plan, folders[size], progress, engine=place, failures=failures)
        for size, plan in plans.items()
    }
    results = ResultsBySize(folder=whole, runs=runs)
    write_sizes(results)
    return results


def run_plan(
    plan: Plan,
    out: Path | None = None,
    progress: Progress | None = None,
    *,
    opened: Callable[[Path], None] | None = None,
    engine: Engine | None = None,
    failures: Failures = Failures.KEEP,
) -> Results:
    """Runs what is left of a plan and writes the reports.

    A cell that fails is recorded with its reason and the others go on. An interrupt leaves every
    finished cell in the folder; the same call goes on from there. Two such calls at the same time
    share the work.

    Args:
        plan: what `resolve` returned.
        out: the run folder; by default one under ``runs``.
        progress: told what happens.
        opened: called with the run folder as soon as it is known.
        engine: where the cells run; by default in this process.
        failures: what is done about cells that failed in an earlier run.

    Raises:
        InvalidConfig: `out` is not this plan's.
    """
    from deltakit.compare.run.queue import job_of, silence_libraries

    silence_libraries()
    progress, plan = progress or Silent(), as_begun(plan, out)
    folder = open_run(plan, out, describe(plan))
    if opened is not None:
        opened(folder.path)
    job = job_of(plan, folder, failures)
    reused = len(plan.cells) - len(job.items)
    progress.begin(sum(item.units for item in job.items), reused)
    (engine or Local()).run(job, progress)
    return collect(folder, reused=reused)


def evaluate(
    path: str | Path,
    judge: str,
    tasks: str | Sequence[str],
    *,
    rows: Sequence[str] = (),
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
    **asked: Any,
) -> Evaluated:
    """Asks another library about the rows of a run, as ``deltakit evaluate`` does.

    Args:
        path: the run folder.
        judge: "lm-eval", "mteb", or another that is registered.
        tasks: the library's names of its tasks.
        rows: labels of rows; by default all whose delta is kept.
        seed: of the cells.
        tell: told each row's outcome.
        asked: how the tasks are asked: ``merged``, ``limit``, ``shots`` and ``batch_size``.

    Raises:
        DeltakitError: wrong input. Nothing was loaded then.
    """
    from deltakit.compare.run.judges.base import Questions
    from deltakit.compare.run.judges.evaluate import evaluate_rows

    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    questions = Questions(tasks=names, **asked)
    failed = evaluate_rows(Path(path), judge, questions, rows=rows, seed=seed, tell=tell)
    return Evaluated(results=report_folder(Path(path)), failed=failed)


def report_folder(path: Path) -> Results:
    """Writes the reports of a run folder again, from its cells.

    Raises:
        InvalidConfig: it is not a run folder.
    """
    return collect(RunFolder(path), reused=0)


def report_sizes(path: Path) -> ResultsBySize | None:
    """Writes the reports of the run of each size in a folder again; None where it holds none."""
    found = sizes_in(path)
    if not found:
        return None
    runs = {size: report_folder(each) for size, each in found.items()}
    return ResultsBySize(folder=path, runs=runs)


def report_joined(folders: Sequence[Path], out: Path) -> Results:
    """Joins run folders to one (see `join`), and writes its reports.

    Raises:
        InvalidConfig: they do not compare, or `out` is in use.
    """
    return collect(join(folders, out), reused=0)


def collect(folder: RunFolder, *, reused: int) -> Results:
    """Reads what the folder holds, in the plan's order, and writes the reports."""
    run = folder.run_record()
    _check_metric(run)
    ids = [cell.id for cell in run.plan.cells]
    classes = run.target.labels
    stored = {each: result for each in ids if (result := folder.result(each)) is not None}
    predictions = {
        (result.method, result.base, result.seed): found
        for each, result in stored.items()
        if result.status == "done" and (found := folder.predictions(each, classes)) is not None
    }
    results, insights = tuple(stored.values()), _insights(folder, stored)
    with folder.files_lock.held():
        write_reports(folder.path, results, predictions, run, insights)
    return Results(
        folder=folder.path,
        results=results,
        predictions=predictions,
        run=run,
        reused=reused,
        verdicts=insights.verdicts,
    )


def _check_metric(run: RunRecord) -> None:
    """Raises `InvalidConfig` for a metric of a user's file that was not imported here."""
    if run.imports and run.task.metric not in METRICS:
        files = " ".join(f"--import {each.name}" for each in run.imports)
        raise InvalidConfig(
            f"the metric {run.task.metric!r} is not known: the run imported files that are not "
            f"imported here. Repeat the command with {files}"
        )


def _insights(folder: RunFolder, stored: Mapping[str, CellResult]) -> CellExtras:
    """The extra records of the folder's finished cells."""
    done = {
        each: (row.method, row.base, row.seed)
        for each, row in stored.items()
        if row.status == "done"
    }

    def recorded(kind: str) -> dict[tuple[str, str, int], Any]:
        contents = {key: folder.extras(each, kind) for each, key in done.items()}
        return {key: content for key, content in contents.items() if content}

    return CellExtras(
        searches={key: Choice.from_plain(each) for key, each in recorded("search").items()},
        found=recorded("diagnostics"),
        learning_curves={
            key: tuple(EvalPoint(**each) for each in curve)
            for key, curve in recorded("pace").items()
        },
        latencies={
            key: tuple(ShapeTime(**each) for each in times)
            for key, times in recorded("latency").items()
        },
        verdicts={key: found for each, key in done.items() if (found := folder.verdicts(each))},
    )
