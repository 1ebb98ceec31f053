"""Two hosts with addresses of their own, as network namespaces of this machine: a job over both, and its end when the link is cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from sani_dist.config import Config
from sani_dist.config_file import config_to_mapping
from sani_dist.run import Run

from ..watching import repaired_steps
from .test_launchers import BIN, WORKER, model_hash, started, wait_for_step

SECONDS = 20  # cluster.timeout_seconds
PORT = 29611


@dataclass(frozen=True)
class Host:
    """A network namespace and its end of the cable."""

    name: str
    address: str
    cable: str

    def command(self, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, "env", f"GLOO_SOCKET_IFNAME={self.cable}", *arguments]


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs iproute2 and the right to make network namespaces")
    pair = tuple(Host(f"sani-{i}-{os.getpid()}", f"10.77.0.{i}", f"cable{i}") for i in (1, 2))
    names = [Path("/etc/netns", host.name) for host in pair]
    try:
        for host, folder in zip(pair, names, strict=True):
            _ip("netns", "add", host.name)
            folder.mkdir(parents=True)
            # A host finds itself under its own name at the address that the others know.
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} {os.uname().nodename}\n")
        _ip(
            "link",
            "add",
            pair[0].cable,
            "netns",
            pair[0].name,
            "type",
            "veth",
            "peer",
            pair[1].cable,
            "netns",
            pair[1].name,
        )
        for host in pair:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable)
            _ip("-n", host.name, "link", "set", host.cable, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield pair[0], pair[1]
    finally:
        for host, folder in zip(pair, names, strict=True):
            subprocess.run(["ip", "netns", "del", host.name], check=False)
            shutil.rmtree(folder, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def torchrun(hosts: tuple[Host, Host], number: int, folder: Path) -> list[str]:
    return [
        str(BIN / "torchrun"), "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number),
        "--master-addr", hosts[0].address, "--master-port", str(PORT),
    ]  # fmt: skip


def deepspeed(hosts: tuple[Host, Host], number: int, folder: Path) -> list[str]:
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    return [
        str(BIN / "deepspeed"), "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(number),
        "--master_addr", hosts[0].address, "--master_port", str(PORT),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
def test_a_job_over_two_hosts_ends_when_the_link_is_cut_and_goes_on_when_it_is_back(
    hosts: tuple[Host, Host], make_config: Callable[..., Config], finished_run: Run, tmp_path: Path,
    launcher: Callable[[tuple[Host, Host], int, Path], list[str]],
) -> None:  # fmt: skip
    config = make_config(cluster={"workers": 2, "threads": 1, "timeout_seconds": SECONDS})
    settings, folder = tmp_path / "run.yaml", tmp_path / "run"
    settings.write_text(yaml.safe_dump(config_to_mapping(config)))
    logs = [tmp_path / f"log-{number}" for number in range(2)]

    def start() -> list[subprocess.Popen[bytes]]:
        return [
            started(host.command(*launcher(hosts, number, tmp_path), WORKER, str(settings), "--out", str(folder)), log)
            for number, (host, log) in enumerate(zip(hosts, logs, strict=True))
        ]

    processes = start()
    wait_for_step(6, folder, processes[0], logs[0])
    _ip("-n", hosts[0].name, "link", "set", hosts[0].cable, "down")
    cut = time.monotonic()
    for process, log in zip(processes, logs, strict=True):
        # The launchers give their ranks up to 30 s more to end.
        assert process.wait(SECONDS + 60) != 0, log.read_text()[-3000:]
    assert time.monotonic() - cut < SECONDS + 60
    said = [(folder / "logs" / f"rank-{rank}.error").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert said[0].startswith(f"all ranks waited {SECONDS} s (cluster.timeout_seconds) in a collective: is the network")
    assert all(said[0].strip() in log.read_text() for log in logs)
    reached = max(repaired_steps(folder))

    _ip("-n", hosts[0].name, "link", "set", hosts[0].cable, "up")
    for process, log in zip(start(), logs, strict=True):
        assert process.wait(300) == 0, log.read_text()[-3000:]
    run = Run.open(folder)
    assert run.pending() == []
    assert model_hash(run) == model_hash(finished_run)
    # From a checkpoint, not from where it was cut.
    assert sum(step <= reached for step in repaired_steps(folder)) > reached
