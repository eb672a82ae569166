import contextlib
import dataclasses
import socket
import threading

import pytest

from eqscale.errors import InputError
from eqscale.study.preflight import CPU_LIMIT_SECONDS, check_devices, check_ray_address
from tests.study.test_ledger import make_spec

HUGE = [dataclasses.replace(make_spec(seed), budget=1e17) for seed in range(3)]


def cpu_core(spec):
    return spec.budget / 1e10


def test_a_study_for_gpus_says_what_it_needs_and_what_fits():
    with pytest.raises(InputError) as caught:
        check_devices(HUGE, cpu_core, cpus=2, gpus=0, presets={"quick": 1e11, "cpu": 1e13, "paper": 1e19})
    message = str(caught.value)
    for part in ("3 runs need GPUs", "3e17 FLOPs", "2 CPU cores", "8 GPU-hours", "--preset quick, cpu fits"):
        assert part in message
    assert "\n" not in message


def test_gpus_or_enough_time_or_enough_cores_lift_the_refusal():
    check_devices(HUGE, cpu_core, cpus=2, gpus=1, presets={})
    check_devices(HUGE, lambda spec: 3600.0, cpus=2, gpus=0, presets={})
    edge = CPU_LIMIT_SECONDS * 0.99
    check_devices(HUGE, lambda spec: edge, cpus=3, gpus=0, presets={})
    with pytest.raises(InputError):
        check_devices(HUGE, lambda spec: edge, cpus=2, gpus=0, presets={})


@contextlib.contextmanager
def server_that_says(reply):
    """Address of a server that answers whatever it is told with the reply, and hangs up."""

    def answer(server):
        connection, _ = server.accept()
        connection.recv(1000)
        connection.sendall(reply)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_an_address_where_http2_is_spoken_is_left_to_ray():
    with server_that_says(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))) as address:
        check_ray_address(address)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_server_that_is_not_ray_is_refused(reply):
    with server_that_says(reply) as address, pytest.raises(InputError, match="isn't Ray"):
        check_ray_address(address)


@pytest.mark.parametrize("address", ["", "head", "127.0.0.1", "127.0.0.1:99999", "head:port", "http://a:1/"])
def test_an_address_that_cannot_be_one_is_refused(address):
    with pytest.raises(InputError, match="Ray address"):
        check_ray_address(address)
