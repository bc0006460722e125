"""`python -m penult.client.health`: 0 when the server beside it is ready, else 1 and one line why."""

import signal

import pytest

from penult.client.health import own_target, status

MODULE = ("-m", "penult.client.health")


def test_it_says_ready_of_a_server_that_is(quick, start_server, run_python):
    """It finds the server by the server's own variables, says nothing, and ends with 0."""
    server = start_server(quick)
    done = run_python(*MODULE, env={"PENULT_HOST": "0.0.0.0", "PENULT_PORT": server.target.rpartition(":")[2]})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_tells_draining_from_dead(quick, start_server, run_python):
    """While draining it is NOT_SERVING and still live; of a server that has gone, UNAVAILABLE."""
    server = start_server(quick, "--drain-lead", "60")
    server.process.send_signal(signal.SIGTERM)
    while status(server.target) == "SERVING":  # until the signal has been read
        assert server.process.poll() is None
    done = run_python(*MODULE, "--target", server.target)
    assert (done.returncode, done.stderr) == (1, f"{server.target}: NOT_SERVING\n")
    assert run_python(*MODULE, "--target", server.target, "--service", "live").returncode == 0
    server.process.kill()
    server.process.wait()
    done = run_python(*MODULE, "--target", server.target)
    assert (done.returncode, done.stderr) == (1, f"{server.target}: UNAVAILABLE\n")


def test_a_name_that_nobody_has_is_not_ready(quick, start_server):
    """A health name that the server does not know is NOT_FOUND, not ready."""
    assert status(start_server(quick).target, "nobody") == "NOT_FOUND"


@pytest.mark.parametrize(
    ("environment", "target"),
    [
        ({}, "127.0.0.1:50051"),
        ({"PENULT_HOST": "0.0.0.0", "PENULT_PORT": "50052"}, "127.0.0.1:50052"),
        ({"PENULT_HOST": "::"}, "[::1]:50051"),
        ({"PENULT_HOST": "10.0.0.1", "PENULT_PORT": "1"}, "10.0.0.1:1"),
        ({"PENULT_PORT": "tcp://10.0.0.1:50051"}, "127.0.0.1:50051"),
    ],
)
def test_it_asks_where_the_server_listens(environment, target):
    """Of all addresses it asks loopback; a variable of Kubernetes' is none of ours."""
    assert own_target(environment) == target


def test_it_needs_the_base_install_only(run_python):
    """It asks without the packages that only servers have."""
    code = "import sys, penult.client.health; print([n for n in ('grpc_health.v1', 'onnxruntime', 'PIL') if n in sys.modules])"
    assert run_python("-c", code).stdout == "[]\n"
