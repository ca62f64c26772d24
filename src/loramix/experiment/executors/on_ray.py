"""The executor on Ray: every step is a task that waits for those it needs, on any machine.

Whatever a step reads and writes lies in the run folder, so that all machines must share it. Ray
does a step again whose worker has died; it goes on from its checkpoints, as a killed run does.
"""

import logging
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loramix.errors import LoramixError, MissingExtraError, StageError
from loramix.experiment.executors.job import Job, unfinished
from loramix.experiment.executors.resources import Resources
from loramix.storage.files import write_text
from loramix.storage.locks import locked

if TYPE_CHECKING:
    from ray import ObjectRef

log = logging.getLogger("loramix")
LOCAL = "local"  # as Ray has it: its own processes on this machine, for as long as the command runs
RETRIES = 3  # of a step whose worker dies
_STORE = 100 * 2**20  # bytes of Ray's shared memory: steps hand files to each other, not objects
_REACH_SECONDS = 10.0
_ADDRESS = re.compile(r"local|auto|[^\s=/:]+:\d+")
_WITHOUT_GPU = ("prepare", "report")


@dataclass(frozen=True)
class OnRay:
    """Does jobs side by side on the Ray cluster at an address.

    resources: what a step of each stage takes; Resources() for others.
    begin: called in a worker before each of its steps, to set up its messages.
    """

    address: str = LOCAL
    resources: Mapping[str, Resources] = field(default_factory=dict)
    begin: Callable[[], None] | None = None

    def __call__(self, jobs: Sequence[Job], root: Path) -> None:
        """Do the jobs; raises what a step raises, and StageError where a cluster cannot do them."""
        open_jobs = unfinished(jobs)
        keys = {job.key for job in open_jobs}
        for job in jobs:
            if job.key not in keys:
                log.info("%s: already done", job.key)
        if not open_jobs:
            return
        with connected(self.address), _marked(root) as place:
            takes = {job.key: self._takes(job.stage) for job in open_jobs}
            _check_resources(takes, waits=self.address != LOCAL)
            _check_nodes(place)
            _follow(_submitted(open_jobs, takes, place, self.begin))

    def _takes(self, stage: str) -> Resources:
        import ray

        asked = self.resources.get(stage, Resources())
        if asked.gpu is not None:
            return asked
        some = ray.cluster_resources().get("GPU", 0) and stage not in _WITHOUT_GPU
        return Resources(asked.cpu, 1.0 if some else 0.0, asked.gb)


@dataclass(frozen=True)
class Place:
    """The run folder as the driver sees it: a worker that sees another one finds no `token`."""

    root: Path
    folder: Path  # the one in which the command was given: relative paths begin there
    host: str
    token: str

    @property
    def mark(self) -> Path:
        """The file that holds the token."""
        return self.root / ".stages" / "cluster"

    def enter(self) -> None:
        """Go to the folder in which the command was given; StageError where it is not shared."""
        here = socket.gethostname()
        try:
            os.chdir(self.folder)
            seen = self.mark.read_text(encoding="utf-8")
        except OSError:
            seen = ""
        if seen != self.token:
            raise StageError(
                f"{here} does not see the run folder {self.folder / self.root} of {self.host}; "
                "all machines of a cluster must share it under the same path: choose one on "
                "shared storage with --out, and give the command in a folder that all have"
            )


def check_address(address: str) -> None:
    """Raise StageError for what cannot be the address of a Ray cluster."""
    if not _ADDRESS.fullmatch(address):
        raise StageError(
            f"'{address}' is no address of a Ray cluster: give HOST:PORT, such as 10.0.0.1:6379, "
            "on a machine of that cluster, or 'auto' there, or 'local' for one on this machine "
            "(--cluster=local, where a recipe or setting follows)"
        )


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a Ray cluster, or start one on this machine and end it.

    Raises MissingExtraError without Ray, and StageError if there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unasked
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # each message of each worker
    if address == LOCAL:
        _guard()
    if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # of workers' messages
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "cluster") from error
    if ray.is_initialized():  # by the program that calls us, which ends it as well
        yield
        return
    local = {
        "include_dashboard": False,
        "object_store_memory": _STORE,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        _check_reachable(address)  # Ray itself tries for minutes
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            **(local if address == LOCAL else {}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StageError(
            f"there is no Ray cluster at '{address}' ({reason}); start one with `ray start "
            "--head`, set RAY_AUTH_MODE=token if it asks for one, or give --cluster alone for one "
            "on this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _guard() -> None:
    """Give Ray's processes on this machine, which listen to the network, a token of their own that
    ends with them: they run whatever they are sent.
    """
    # Ray reads this when it is imported; where that was earlier, its own defaults hold
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def _check_reachable(address: str) -> None:
    """Raise ConnectionError if nothing listens at HOST:PORT."""
    host, _, port = address.partition(":")
    if not port:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"nothing answers there: {error}") from error


@contextmanager
def _marked(root: Path) -> Iterator[Place]:
    """Put a token into the run folder by which workers know that they see the same one."""
    place = Place(root, Path.cwd(), socket.gethostname(), secrets.token_hex(8))
    write_text(place.mark, place.token)
    try:
        yield place
    finally:
        place.mark.unlink(missing_ok=True)


def _check_resources(takes: Mapping[str, Resources], *, waits: bool) -> None:
    """Say which steps no machine has room for; StageError where none can join.

    waits: whether machines can join.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for key, asked in takes.items():
        needed = {"CPU": asked.cpu, "GPU": asked.gpu or 0, "memory": asked.gb * 1e9}
        if any(all(node.get(unit, 0) >= most for unit, most in needed.items()) for node in nodes):
            continue
        has = "; ".join(
            f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU, "
            f"{node.get('memory', 0) / 1e9:.1f} GB of memory"
            for node in nodes
        )
        said = f"step {key} takes {asked}, and no machine of the cluster has that: {has}"
        if not waits:
            raise StageError(f"{said}; ask for less with --step-resources")
        log.warning("%s; it waits until one joins", said)


def _check_nodes(place: Place) -> None:
    """Raise StageError for a machine of the cluster that cannot work in the run folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    enter = ray.remote(Place.enter)
    for node in ray.nodes():
        if node["Alive"]:
            only = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ref = enter.options(num_cpus=0, scheduling_strategy=only).remote(place)
            _value(f"on {node['NodeManagerHostname']}", ref)


def _submitted(
    jobs: Sequence[Job],
    takes: Mapping[str, Resources],
    place: Place,
    begin: Callable[[], None] | None,
) -> "dict[str, ObjectRef]":
    """Hand all jobs to Ray; return their results to come, by key and in the jobs' order."""
    import ray

    work = ray.remote(_work)
    refs: dict[str, ObjectRef] = {}
    for job in jobs:
        asked = takes[job.key]
        options = {"num_cpus": asked.cpu, "num_gpus": asked.gpu, "name": job.key}
        if asked.gb:
            options["memory"] = asked.gb * 1e9
        needs = [refs[key] for key in job.needs if key in refs]
        task = work.options(max_retries=RETRIES, **options)
        refs[job.key] = task.remote(job, place, asked.cpu, begin, *needs)
    return refs


def _work(
    job: Job, place: Place, threads: int, begin: Callable[[], None] | None, *needs: object
) -> tuple[str, float]:
    """Do one job in a worker; return where it was done and the seconds that it took.

    needs: what Ray waits for.
    """
    import torch

    place.enter()
    torch.set_num_threads(threads)
    if begin is not None:
        begin()
    started, where = time.monotonic(), f"{socket.gethostname()}, process {os.getpid()}"
    log.info("%s: starts on %s", job.key, where)
    # a driver that was killed may leave a worker behind for a moment
    lock = job.marker.with_name(f"{job.marker.name}.lock")
    with locked(place.root, lock, wait=True), redirect_stdout(sys.stderr):  # results are files
        job.work()
    return where, time.monotonic() - started


def _follow(refs: "Mapping[str, ObjectRef]") -> None:
    """Log every job that ends; raises the error of the first that fails."""
    import ray

    waiting = {ref: key for key, ref in refs.items()}
    while waiting:
        ended, _ = ray.wait(list(waiting), num_returns=1)
        key = waiting.pop(ended[0])
        where, seconds = _value(f"of step {key}", ended[0])
        done = len(refs) - len(waiting)
        log.info("%d of %d steps: %s done in %.0f s on %s", done, len(refs), key, seconds, where)


def _value(of: str, ref: "ObjectRef") -> tuple[str, float]:
    """Return the result of a task; raises its error, as in one process."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        result: tuple[str, float] = ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, LoramixError | OSError):
            raise error.cause from error
        raise
    except RayError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StageError(
            f"the worker {of} died, {RETRIES + 1} times if it could be started at all ({reason}); "
            "its last messages are above; the same command goes on where it was"
        ) from error
    return result
