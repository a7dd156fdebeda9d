"""Cells that sleep, fail or are killed, and a cluster of Ray that loses a node.

Ray's workers import this module: it asks for nothing that they need not have.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from resid_theory import sweep
from resid_theory.sweep import Outcome, Task, ray_executor, registry
from resid_theory.sweep.results import Results
from resid_theory.sweep.worker import Options


@dataclass(frozen=True, kw_only=True)
class Trial(Task):
    """A task that sleeps, fails or kills its process, and notes each time it starts."""

    folder: str = ""
    seconds: float = 0.0
    fails: bool = False
    kills: int = 0

    def run(self, folder, device):
        log = os.path.join(self.folder, f"{self.seed}.log")
        with open(log, "a") as file:
            file.write("x")
        time.sleep(self.seconds)
        if os.path.getsize(log) <= self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails:
            raise ArithmeticError(f"seed {self.seed}\ndoes not converge")
        return Outcome(numbers={"kills": self.kills}, arrays={})


@dataclass(frozen=True, kw_only=True)
class Outage(Task):
    """A task that brings its node down, unless it is the head, where it waits for the outage."""

    folder: str = ""
    head: str = ""

    def run(self, folder, device):
        import ray

        down, latest = Path(self.folder, "down"), time.monotonic() + 120
        if ray.get_runtime_context().get_node_id() != self.head:
            down.touch()
            os.kill(os.getppid(), signal.SIGTERM)  # Ray's own process on this node
        while not down.exists():
            assert time.monotonic() < latest, "no cell ran on the second node"
            time.sleep(0.05)
        return Outcome(numbers={}, arrays={})


def _start(cluster, head, node):
    """Both nodes; Ray gives its own Python processes 15 s to import it, too little under load."""
    for tries_left in (2, 1, 0):
        try:
            cluster.add_node(**head)
            return cluster.add_node(**node)
        except Exception:  # Ray's are bare
            cluster.shutdown()
            if not tries_left:
                raise


def lose_a_node(trial, folder):
    """Cells on two nodes of one CPU, of which the second is lost: in a process of its own."""
    from ray.cluster_utils import Cluster

    registry.TASKS |= {"trial": Trial, "outage": Outage}
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
    cluster = Cluster()
    try:
        _start(cluster, {**node, "include_dashboard": False, "no_monitor": True}, node)
        os.environ["RAY_ADDRESS"] = cluster.address
        outage = {"folder": folder, "head": cluster.head_node.node_id}
        cells = [
            *sweep.grid_of({"task": "outage", **outage, "seed": [0, 1]}),
            *sweep.grid_of({**trial, "grid": [{"seed": 2, "fails": True}, {"seed": [3, 4]}]}),
            # The last one: none needs the worker after it, which would import for seconds.
            *sweep.grid_of({**trial, "seed": 1, "kills": 100}),
        ]
        options = Options(workers=2, retries=1, device="cpu", gpus=0.0)
        reports = list(ray_executor.run_in_ray(cells, Results(Path(folder, "out")), options))
    finally:
        cluster.shutdown()
    assert {report.cell.key for report in reports} == {cell.key for cell in cells}
    assert sorted(report.error.partition(":")[0] for report in reports if report.error) == [
        "ArithmeticError",
        "its worker was lost 2 times (WorkerCrashedError); the usual cause is lack of memory",
    ]
