"""The Ray that a command uses: the caller's, the cluster at an address, or one of its own that ends with it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from sani_dist.errors import InputError, RunError

CONNECT_SECONDS = 10


def check_installed() -> None:
    """Raises InputError when there is no Ray with its part for training."""
    if find_spec("ray") is None or find_spec("ray.train") is None:
        raise InputError("cluster: ray is not installed; run: pip install 'ray[default,train]==2.60.0'")


@contextlib.contextmanager
def connected(
    address: str | None, *, cpus: float, resources: Mapping[str, float], object_store_bytes: int
) -> Iterator[bool]:
    """A connection to Ray, unless the caller has one. Without an address here or in RAY_ADDRESS, a Ray of our own, which ends here.

    `cpus`, `resources`, `object_store_bytes`: what a Ray of our own has. Yields whether it is one. Raises InputError when there is none,
    RunError when one of our own does not start.
    """
    import ray

    if ray.is_initialized():
        yield False
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address is None:
            ray.init(
                address="local", num_cpus=math.ceil(cpus), include_dashboard=False, object_store_memory=object_store_bytes,
                resources=dict(resources), **quiet,
            )  # fmt: skip
        else:
            if address == "auto":
                from ray._private.services import get_ray_address_from_environment

                # Where Ray itself would look. What a killed cluster has left behind may be found there.
                address = get_ray_address_from_environment("auto", None)
            _knock(address)
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError):
        raise InputError(
            f"cluster.address: no Ray cluster takes us in at {_shown(address)}; one with tokens wants "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from None
    except Exception as error:  # of this type and no other, where a node of Ray's does not come up within 30 s
        if type(error) is not Exception:
            raise
        raise RunError(
            "Ray did not start within its time: is this machine busy, or short of memory? Start again"
        ) from None
    try:
        yield address is None
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises InputError when nothing listens at host:port. Ray itself tries for five minutes."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError):
        raise InputError(f"cluster.address: nothing answers at {_shown(address)}") from None


def _shown(address: str | None) -> str:
    """An address that is one may be shown; another may hold a password."""
    if address is None:
        return "this machine"
    return address if re.fullmatch(r"auto|local|[A-Za-z0-9.:\[\]-]+:\d+", address) else "that address"
