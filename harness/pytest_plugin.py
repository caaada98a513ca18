"""The pytest face: `pytest suites/` collects YAML suites; one check is one item, one runner judges what is selected.

Loaded by pytest in every project it is installed in: nothing but pytest and the standard library is imported above.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness import pytest_telling as telling
from harness.pytest_keeping import Keeper, gathered

if TYPE_CHECKING:
    from harness.load import Loaded
    from harness.plan import Check
    from harness.record import Target
    from harness.runner import Judged, Runner
    from harness.store import Results

Marks = dict[str, pytest.MarkDecorator]
SUFFIXES = (".yaml", ".yml")
TOP_KEY = re.compile(r"^[{ ]{0,2}[\"']?([A-Za-z_]+)[\"']?\s*:", re.MULTILINE)
IN_GITHUB = ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY")
SHARE = "harness"  # under this key the controller of xdist and its workers hand each other what is below


class CheckFailed(Exception):
    """An expectation is not met; the text is the whole report."""


class NotJudged(Exception):
    """A check could not be judged; the text is the whole report."""


class State:
    """What the plugin knows in one pytest session."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.runner: Runner | None = None
        self.command = shlex.join(("pytest", *config.invocation_params.args))
        self.told: set[tuple[str, str]] = set()
        self.notes: list[str] = []
        self.results: Results | None = None
        self.workers: Path | None = None  # in which those of xdist leave what they found, each in a folder of its own
        self.checks = 0  # that were selected, where workers judged them

    @cached_property
    def suite_files(self) -> frozenset[Path]:
        """The files that `harness_suites` names."""
        globs = self.config.getini("harness_suites")
        wrong = [glob for glob in globs if not glob or Path(glob).is_absolute()]
        if wrong:
            raise pytest.UsageError(f"harness_suites: {wrong[0]!r} is not a glob relative to the rootdir")
        return frozenset(path.resolve() for glob in globs for path in self.config.rootpath.glob(glob))

    def start(self, checks: Sequence[Check]) -> None:
        """One runner for the checks that will really run. Workers of xdist have no terminal, and stay quiet."""
        from harness.pins.book import Book, mode_of
        from harness.runner import Runner

        loud = self.config.get_verbosity() > 0 and self.config.pluginmanager.hasplugin("terminalreporter")
        observer = telling.Progress(self.config.pluginmanager) if loud and not os.environ.get("CI") else None
        repros = self.config.getoption("harness_repro")
        self.runner = Runner(
            checks,
            observer,
            pins=Book(mode_of(self.config.getoption("update_pins"))),
            repros=self.config.invocation_params.dir / repros if repros else None,
        )
        if self.keeper:
            self._begin(self.runner, self.keeper)

    @cached_property
    def keeper(self) -> Keeper | None:
        """Makes a run folder; each worker of xdist one for the controller, which makes one of all."""
        if given := getattr(self.config, "workerinput", None):
            return Keeper(Path(given[SHARE], given["workerid"]), page=False)
        parent = self.config.getoption("harness_report")
        return Keeper(self.config.invocation_params.dir / parent, page=True) if parent else None

    def _begin(self, runner: Runner, keeper: Keeper) -> None:
        from harness.errors import HarnessError

        try:
            keeper.begin(runner.results(self.command))
        except HarnessError as error:
            runner.close()
            raise pytest.UsageError(str(error)) from None

    def judge(self, check: Check) -> Judged:
        """What is judged is written down: a session may be killed."""
        assert self.runner is not None, "pytest_collection_finish was not called"
        judged = self.runner.judge(check)
        if self.keeper:
            self.keeper.add(judged)
        return judged

    def once(self, target: str, text: str) -> str:
        """The text when a target says it first, then only a reminder."""
        if (target, text) in self.told:
            return "same as above: " + text.partition("\n")[0]
        self.told.add((target, text))
        return text

    def finish(self, session: pytest.Session) -> None:
        """Free the model, put together what the end of the run tells, and write the report that was asked for."""
        if self.runner is not None:
            self._keep_pins(session)
            self.runner.close()
            self.results = self.runner.results(self.command) if self.runner.judged else None
        elif self.workers:
            self.results, unknown = gathered(self.workers, self.checks, self.command)
            self.notes += [f"harness: {line}" for line in unknown]
        if self.keeper:
            self._keep(self.keeper, session)
        if self.runner is not None and hasattr(self.config, "workeroutput"):
            self.config.workeroutput[SHARE] = {"checks": len(self.runner.checks), "notes": self.notes}

    def _keep_pins(self, session: pytest.Session) -> None:
        """Each worker of xdist writes what it recorded: files are locked, and what others wrote in them is kept."""
        from harness.errors import HarnessError
        from harness.pins.recording import save

        assert self.runner is not None
        try:
            self.notes += [f"harness: {line}" for line in save(self.runner.pins, self.runner.answers)]
        except HarnessError as error:
            self.notes.append(f"harness: {error}")
            session.exitstatus = session.exitstatus or pytest.ExitCode.INTERNAL_ERROR

    def _keep(self, keeper: Keeper, session: pytest.Session) -> None:
        from harness.errors import HarnessError

        try:
            folder = keeper.save(self.results)
        except HarnessError as error:
            self.notes.append(f"harness: {error}")
            session.exitstatus = session.exitstatus or pytest.ExitCode.INTERNAL_ERROR
        else:
            if folder and keeper.page:
                self.notes.append(f"harness: report {_relative(folder, self.config.invocation_params.dir)}")


STATE = pytest.StashKey[State]()


def _state(config: pytest.Config) -> State:
    return config.stash.setdefault(STATE, State(config))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("harness", "harness: generation tests written in YAML")
    group.addoption(
        "--update-pins", nargs="?", const="all", metavar="new", help="record what is pinned; =new: only what is not yet"
    )
    group.addoption("--harness-repro", metavar="DIR", help="write a stand-alone script for each failure under DIR")
    group.addoption("--harness-report", metavar="DIR", help="write the run as a new folder under DIR")
    parser.addini("harness_suites", "globs of suite files to collect, relative to the rootdir", type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    _ = _state(config).suite_files  # a wrong glob is told at once
    if config.getoption("update_pins"):
        from harness.errors import UsageError
        from harness.pins.book import mode_of

        try:
            mode_of(config.getoption("update_pins"))
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    """Keep each target on one worker of xdist, where the user does not say how to distribute."""
    option = config.option
    if getattr(option, "numprocesses", None) and option.dist == "no" and not option.distload and _asks_suites(config):
        # A wrapper, because xdist's own hook comes before any `tryfirst` and turns "no" into "load".
        option.dist = "loadscope"
    return (yield)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    if file_path.suffix not in SUFFIXES:
        return None
    wanted = file_path.resolve() in _state(parent.config).suite_files
    if not (wanted or parent.session.isinitpath(file_path)) or not _is_suite(file_path, wanted):
        return None
    return SuiteFile.from_parent(parent, path=file_path)


def pytest_collection_finish(session: pytest.Session) -> None:
    checks = [item.check for item in session.items if isinstance(item, CheckItem)]
    if checks and not session.config.option.collectonly:
        _state(session.config).start(checks)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """pytest asks an item about failures of its call only; ours also come from setup."""
    report = yield
    if isinstance(item, CheckItem) and call.excinfo is not None:
        if isinstance(call.excinfo.value, NotJudged):
            report.longrepr = item.repr_failure(call.excinfo)
        elif isinstance(call.excinfo.value, pytest.skip.Exception) and isinstance(report.longrepr, tuple):
            report.longrepr = (str(item.file), item.check.line, report.longrepr[2])
    return report


@pytest.hookimpl(trylast=True)  # when xdist has waited for its workers
def pytest_sessionfinish(session: pytest.Session) -> None:
    _state(session.config).finish(session)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker of xdist is about to start, and is told where to leave what it finds."""
    state = _state(node.config)
    state.workers = state.workers or Path(tempfile.mkdtemp(prefix="harness-"))
    node.workerinput[SHARE] = str(state.workers)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of xdist is done: what it says beside its results."""
    share = getattr(node, "workeroutput", {}).get(SHARE)
    if share:
        state = _state(node.config)
        state.checks = max(state.checks, share["checks"])
        state.notes += share["notes"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    state = _state(config)
    for line in (*(telling.summary(state.results) if state.results else ()), *state.notes):
        terminalreporter.write_line(line)
    if state.results and any(os.environ.get(name) for name in IN_GITHUB):
        from harness.reports.pull_request import tell_github

        tell_github(state.results, sys.stdout)


class SuiteFile(pytest.File):
    """A suite: one YAML file."""

    def collect(self) -> Iterator[TargetCollector]:
        from harness.errors import HarnessError
        from harness.plan import targets
        from harness.reports import visible

        try:
            loaded = self._load()
        except HarnessError as error:
            raise self.CollectError(visible(str(error))) from None
        given = {"loaded": loaded, "marks": self._marks(loaded)}
        for target in dict.fromkeys(targets(loaded.suite)):
            name = {"name": target.name, "nodeid": f"{self.nodeid}::{target.name}"}
            yield TargetCollector.from_parent(self, **name, **given, target=target)

    def _load(self) -> Loaded:
        """Mistakes are told relative to where the user is, checks are named relative to the rootdir."""
        from harness.load import load

        loaded = load(_relative(self.path, Path.cwd()))
        files = {test: _relative(Path(file), self.config.rootpath) for test, file in loaded.files.items()}
        return replace(loaded, file=self.nodeid, files=files)

    def _marks(self, loaded: Loaded) -> Marks:
        """Each mark of the suite, as strictly as this session takes them."""
        marks: Marks = {}
        problems = []
        for test in loaded.suite.tests:
            for name in test.marks:
                try:
                    marks[name] = marks.get(name) or getattr(pytest.mark, name)
                except (pytest.fail.Exception, pytest.PytestUnknownMarkWarning, AttributeError) as error:
                    file = loaded.files.get(test.name, loaded.file)
                    problems.append(f"{file}:{loaded.lines[test.name]}: error: mark of test '{test.name}': {error}")
        if problems:
            raise self.CollectError("\n".join(problems))
        return marks


class TargetCollector(pytest.Collector):
    """One thing to load. A scope of its own, so that xdist's loadscope keeps its checks together."""

    def __init__(self, *, loaded: Loaded, target: Target, marks: Marks, **node: Any) -> None:
        super().__init__(**node)
        self.loaded, self.target, self.marks = loaded, target, marks

    def collect(self) -> Iterator[CheckItem]:
        from harness.plan import checks

        made = checks(self.loaded, self.target)
        count = Counter(check.id for check in made)
        twice = {check.id: f"{check.file}:{check.line}" for check in made if count[check.id] > 1}
        if twice:
            raise self.CollectError(
                "\n".join(f"{place}: error: two checks are called {id}" for id, place in twice.items())
            )
        for check in made:
            item: CheckItem = CheckItem.from_parent(self, name=check.name, nodeid=check.id, check=check)
            for mark in check.test.marks:
                item.add_marker(self.marks[mark])
            yield item


class CheckItem(pytest.Item):
    """One verdict to reach. It is reached in setup, so that what cannot be judged is an ERROR and not a failure."""

    def __init__(self, *, check: Check, **node: Any) -> None:
        super().__init__(**node)
        self.check = check
        self.judged: Judged | None = None
        # For -k; every other word is in the names of the item and of its target.
        self.extra_keyword_matches.update(case.name for case in check.cases)

    @property
    def file(self) -> Path:
        """Where the test is written; a suite may take it from the one it extends."""
        return self.path if self.nodeid.startswith(f"{self.check.file}::") else self.config.rootpath / self.check.file

    def reportinfo(self) -> tuple[Path, int, str]:
        # Not an end of the node id: pytest would read "qwen2.5" there as "qwen2::5".
        return self.file, self.check.line - 1, f"{self.name} on {self.check.target.name}"

    def setup(self) -> None:
        judged = self.judged or self._judge()
        worst = judged.worst
        if judged.status == "error":
            raise NotJudged(_state(self.config).once(worst.target, telling.told(judged)) + telling.place(worst))
        if judged.status == "skipped":
            pytest.skip(telling.visible(worst.verdict.reason))
        if worst.xfail:
            self.add_marker(pytest.mark.xfail(reason=telling.visible(worst.xfail), raises=CheckFailed))

    def runtest(self) -> None:
        if self.judged and self.judged.status == "failed":
            raise CheckFailed(telling.told(self.judged) + telling.place(self.judged.worst))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Our text and no traceback; its first line is what the short summary shows."""
        if not isinstance(excinfo.value, (CheckFailed, NotJudged)):
            return super().repr_failure(excinfo, style)
        shown = excinfo.getrepr(style="value", chain=False)
        if shown.reprcrash:
            shown.reprcrash.path, shown.reprcrash.lineno = str(self.file), self.check.line
            shown.reprcrash.message = str(excinfo.value).partition("\n")[0]
        return shown

    def _judge(self) -> Judged:
        from harness.errors import HarnessError

        try:
            self.judged = _state(self.config).judge(self.check)
        except HarnessError as error:
            raise NotJudged(telling.visible(str(error))) from None
        self.user_properties.extend(telling.properties(self.judged))
        return self.judged


def _is_suite(path: Path, wanted: bool) -> bool:
    """By its text alone; where a glob asks for it, also with a slip in the key, to be told about it."""
    try:
        keys = set(TOP_KEY.findall(path.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return wanted
    return "suite" in keys or (wanted and bool(get_close_matches("suite", keys, cutoff=0.75)))


def _asks_suites(config: pytest.Config) -> bool:
    """Whether the command line names suites, or folders that hold some."""
    named = [Path(os.path.abspath(config.invocation_params.dir / arg.split("::")[0])) for arg in config.args]
    files = _state(config).suite_files
    return any(path.suffix in SUFFIXES or any(file.is_relative_to(path.resolve()) for file in files) for path in named)


def _relative(path: Path, start: Path) -> str:
    return os.path.relpath(path, start).replace(os.sep, "/")
