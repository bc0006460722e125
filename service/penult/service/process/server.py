"""`penult serve` from start to drain: wiring only."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, NoReturn, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from penult.bundle.errors import PenultError
from penult.bundle.reader import Bundle
from penult.oip import grpc_service_pb2_grpc
from penult.process_limits import allow_open_files, keep_freed_blocks
from penult.service.auth.listeners import SecureListeners, follow
from penult.service.config import ServeConfig
from penult.service.grpc.interceptor import Interceptor
from penult.service.grpc.servicer import DIRECT, SERVICE_NAME, PenultServicer
from penult.service.grpc.transport import GrpcServer
from penult.service.http.port_conflicts import address, port_refused, reachable
from penult.service.http.reports import Reports
from penult.service.http.server import HttpServer
from penult.service.http.status import Status
from penult.service.http.status_page import page_routes
from penult.service.http.try_photo import TryPhotoRoute, TrySettings
from penult.service.inference.collections import Collections
from penult.service.inference.pipeline import Pipeline
from penult.service.inference.unsure import UnsureImages
from penult.service.lifecycle.deployer import ModelDeployer
from penult.service.lifecycle.events import Events
from penult.service.lifecycle.poller import RepositoryPoller
from penult.service.lifecycle.recovery import Recovery
from penult.service.models.loader import ServedModel, load, load_shadow, warm
from penult.service.models.registry import ModelRegistry
from penult.service.observability.call import DrainGate, Envelope
from penult.service.observability.logs import AccessLog, without_password
from penult.service.observability.metrics import Metrics
from penult.service.observability.tracing import Tracing
from penult.service.oip.dataplane import DataPlane
from penult.service.oip.grpc_servicer import DIRECT as OIP_DIRECT
from penult.service.oip.grpc_servicer import SERVICE_NAME as OIP_NAME
from penult.service.oip.grpc_servicer import OipServicer
from penult.service.oip.http_routes import OipRoutes
from penult.service.process import wiring
from penult.service.process.feedback import FeedbackParts
from penult.service.process.worker import follow_supervisor, heartbeat, is_first, is_worker, start_log_of
from penult.v1 import penult_pb2_grpc

log = logging.getLogger(__name__)

# A name of its own, so that liveness survives draining (research/serving.md, section 3, trap 2).
LIVE_NAME = "live"
_READINESS_NAMES = ("", SERVICE_NAME, OIP_NAME)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_CONNECTION_GRACE_MS = 30_000
_CLIENT_PING_MS = 10_000
_SERVER_PING_MS, _SERVER_PONG_MS = 120_000, 20_000
# Concurrent calls per connection; further ones wait in the client.
_STREAMS = 1024
_HANDSHAKE_MS = 10_000
_UNREAD_BYTES = 192 << 10
_LAST_SPANS_S = 2.0
# Between counts of collections and items, for the metrics.
_COUNT_S = 15.0
# For answers that are already on their way out.
_LAST_BYTES_S = 0.2


def serve(config: ServeConfig) -> NoReturn:
    """Serve until SIGTERM or SIGINT, then end the process with code 0, or with 1 if the device stays broken.

    Raises:
        PenultError: the server cannot start.
    """
    start_log_of(config)
    allow_open_files()
    keep_freed_blocks(config.cpu_threads)
    asyncio.run(_serve_and_leave(config))
    raise AssertionError("unreachable: the process has ended")


async def _serve_and_leave(config: ServeConfig) -> None:
    """Run a server, then end the process without the server's stop().

    stop() answers calls that reached the socket, but no handler yet, with CANCELLED. Clients take that for their own
    cancellation and do not retry; measured, the majority of a dozen busy clients got one. If the socket closes instead,
    clients get UNAVAILABLE, which every retry policy covers. The process waits neither for a model that still loads nor
    for threads that decode photos of clients that have left.
    """
    server = Server(config, is_worker())
    await server.run()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(server.exit_code)


class Server:
    """One gRPC port, one HTTP port, and what answers behind them. A worker leaves the HTTP port to its supervisor."""

    def __init__(self, config: ServeConfig, is_worker: bool = False) -> None:
        """Build the parts; nothing listens yet."""
        self._config, self._is_worker = config, is_worker
        self._limits = wiring.inference_limits(config)
        self.metrics = Metrics(max_classes=config.metrics_max_classes)
        self._listeners = SecureListeners(wiring.listener_security(config), self.metrics)
        self._recovery = Recovery(self._rebuild, self._publish_readiness, self._leave_broken, self.metrics)
        self._keep_limits = wiring.keep_limits(config)
        self._unsure = UnsureImages(self._keep_limits, self.metrics) if self._keep_limits else None
        self._pipeline = Pipeline(self._limits, self.metrics, self._recovery.on_result, self._unsure)
        self._repository = ModelRegistry()
        self._shadows = wiring.shadows(config, self._pipeline.admission, self.metrics)
        self._feedback = FeedbackParts(config, self.metrics, self._repository, self._shadows)
        events, changed = Events(), self._publish_readiness
        stage = ModelDeployer(self._repository, self._pipeline, self.metrics, changed, events, self._shadows)
        self._placement = wiring.placement(config)
        self._poller = RepositoryPoller(
            config.models, config.pins, self._load_model, stage, config.trust, config.shadows
        )
        self._collections = Collections(config.lookup_place, config.cpu_threads, self.metrics, self._is_worker)
        self._status = Status(self.metrics, self._state, events, self._repository, self._collections)
        self._drain_gate = DrainGate()
        self._tracing = Tracing(config.trace, config.trace_share) if config.trace else None
        self._envelope = Envelope(
            self.metrics, self._drain_gate, AccessLog(config.access_log), self._tracing,
            self._shadows.wake if self._shadows else None,
        )  # fmt: skip
        control = self._poller if config.model_control == "on" else None
        self._inference = DataPlane(
            self._repository, self._pipeline, control, lambda: self.is_ready, config.request_max_images,
            self._feedback.answers,
        )  # fmt: skip
        self._health = health_aio.HealthServicer()
        self._has_started = self._has_signal = False
        self.exit_code = 0
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Listen, load, serve and drain; on return, accepted calls are answered or out of time."""
        config, loop = self._config, asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, self._poll_now)
        await self._set_health()
        server, port, http = self._build(), 0, None
        if self._is_worker:
            follow_supervisor(self._stop.set)
        else:
            http = self._http_server()
            port = await self._listen(server)
            await http.start()
            self._keep(self._status.run())
        self._keep(self.metrics.notes.fold_regularly())
        self._keep(follow(self._listeners))
        try:
            if await self._load():
                # Other workers serve already: this one must not get connections before it can answer.
                await self._feedback.start(self._keep)
                port = port or await self._listen(server)
                await self._become_ready(port, http.port if http else config.metrics_port)
                if config.watch_s:
                    self._keep(self._poller.run(config.watch_s))
                await self._stop.wait()
                await self._drain()
            await self._drain_gate.close(config.grace)
            await asyncio.sleep(_LAST_BYTES_S)
            await self._feedback.close()
            if self._unsure:
                await asyncio.to_thread(self._unsure.close)
            if self._tracing:
                await asyncio.wait(
                    [asyncio.ensure_future(asyncio.to_thread(self._tracing.close))], timeout=_LAST_SPANS_S
                )
        except BaseException:
            await server.stop(None)
            await self._pipeline.close()
            await self._poller.close()
            raise
        finally:
            if http:
                await http.stop()
        log.info("stopped")

    def _signalled(self) -> None:
        # A supervisor asks over standard input, before or after a signal; that does not count as a second signal.
        if self._has_signal:
            log.warning("second signal: leaving at once")
            os._exit(1)
        self._has_signal = True
        self._stop.set()

    def _poll_now(self) -> None:
        """On SIGHUP, poll certificates, tokens and the repository now, not at the next interval."""
        log.info("SIGHUP: polling certificates, tokens and the repository now")
        self._listeners.check()
        self._keep(self._poller.poll())

    def _build(self) -> GrpcServer:
        config = self._config
        direct = [f"/{SERVICE_NAME}/{name}" for name in DIRECT] + [f"/{OIP_NAME}/{name}" for name in OIP_DIRECT]
        interceptor = Interceptor(
            (SERVICE_NAME, OIP_NAME), self._envelope, self._listeners.tokens, direct, self._pipeline.check_early
        )
        server = GrpcServer(interceptor, _options(config, self._is_worker))
        servicer = PenultServicer(
            self._repository, self._pipeline, self._collections, config.request_max_images, config.message_max_bytes,
            self._feedback.desk,
        )  # fmt: skip
        adding = cast(grpc.aio.Server, server)  # what generated code calls to add its methods, GrpcServer has
        penult_pb2_grpc.add_PenultServiceServicer_to_server(servicer, adding)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_oip(self._inference), adding)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, adding)
        if config.has_reflection:
            names = (SERVICE_NAME, OIP_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
            reflected = reflection.aio.ReflectionServicer((*names, reflection.SERVICE_NAME))
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, adding)
        return server

    def _http_server(self) -> HttpServer:
        """Bind the HTTP port; raise ConfigError if that fails."""
        config = self._config
        oip = OipRoutes(self._inference, self._envelope, config.message_max_bytes, self._listeners.tokens).routes()
        settings = TrySettings(
            config.has_try_photos, config.try_photos == "on", config.image_max_bytes, not config.tokens
        )
        tries = TryPhotoRoute(
            settings, self._repository, self._pipeline, self._collections, self._envelope, self._feedback.answers
        )
        judging = self._feedback.route(settings, self._envelope, self._listeners.tokens)
        has_callers = bool(config.tokens or config.tls_client_ca)
        reports = Reports(config.models, self._repository, config.is_loopback and not has_callers)
        routes = [*(oip if config.http else ()), *page_routes(self._status, tries, reports), *judging.routes()]
        context = self._listeners.http_context
        return HttpServer(config.host, config.metrics_port, self.metrics, lambda: self.is_ready, routes, context)

    def _state(self) -> str:
        if self._stop.is_set():
            return "draining"
        return "failing" if not self._recovery.is_well else "ready" if self.is_ready else "loading"

    async def _listen(self, server: GrpcServer) -> int:
        """Bind the gRPC port, answer from now on, and return the port's number; raise ConfigError if that fails."""
        try:
            port = self._listeners.bind(server, address(self._config.host, self._config.port))
        except RuntimeError as error:
            raise port_refused(self._config.host, self._config.port, "--port") from error
        await server.start()
        return port

    async def _load(self) -> bool:
        """Load all models, while health answers; return False if asked to stop first."""
        loading = asyncio.create_task(self._poller.start())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if self._stop.is_set():  # also if the models came at the same time: a server that ends must not become ready
            return False
        stopping.cancel()
        await loading
        return True

    def _load_model(self, bundle: Bundle, before: ServedModel | None) -> ServedModel:
        where = self._placement
        if self._shadows and self._shadows.has(bundle.name, bundle.version):
            return load_shadow(bundle, wiring.shadow_placement(self._config))
        if before and not before.is_on_cpu and before.version == bundle.version and where.device == "auto":
            where = replace(where, device="cuda")  # rebuilt after a failure: never on the CPU silently
        model = load(bundle, where, before)
        warm(model, self._limits.batch_images(model), self._limits.batch_s(model))
        return model

    async def _rebuild(self, model: ServedModel) -> bool:
        return await self._poller.rebuild(model)

    def _leave_broken(self) -> None:
        """Drain, and end with code 1, so that the operator's service manager restarts the server."""
        self.exit_code = 1
        self._stop.set()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in the background until it ends or the process does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _become_ready(self, port: int, http_port: int) -> None:
        self._has_started = True
        await self._set_health()
        host, models = self._config.host, self._repository.all()
        served = ",".join(f"{model.name}/{model.version}" for model in models)
        provider = ",".join(sorted({model.session.provider for model in models}))
        scheme = "https" if self._listeners.http_context else "http"
        page = f"{scheme}://{address(reachable(host), http_port)}/"
        if is_first():
            self._greet(port, page)
            self._listeners.warn(host, self._config.model_control == "on")
        print(
            f"ready grpc={address(host, port)} metrics={scheme}://{address(host, http_port)}/metrics models={served} "
            f"provider={provider} page={page}",
            flush=True,
        )
        if self._collections.is_there():
            self._keep(self._open_collections())
        self._keep(self._collections.count(_COUNT_S))
        self._keep(self._recovery.probe(self._repository.all, self._pipeline.probe))
        if self._is_worker:
            self._keep(heartbeat())

    def _greet(self, port: int, page: str) -> None:
        """Log what a first start needs: addresses, the place of collections, and whether models are verified."""
        config = self._config
        log.info("gRPC on %s; page to try a photo, metrics and probes at %s", address(config.host, port), page)
        if config.old_lookup:
            log.warning(
                "collections are in ./%s, the folder of before; move it to %s, beside the models, or give --lookup %s",
                config.old_lookup, config.lookup_beside, config.old_lookup,
            )  # fmt: skip
        elif self._collections.is_on:
            log.info("collections are kept in %s", without_password(config.lookup_place))
        for line in (*(self._keep_limits.lines() if self._keep_limits else ()), *self._feedback.lines()):
            log.warning("%s", line)
        if not config.trusted_key:
            log.info(
                "hint: no --trusted-key is set, so every model in %s is served, without a check of its origin; that is "
                "fine if only you can write there (docs/security.md)", config.models,
            )  # fmt: skip

    async def _open_collections(self) -> None:
        """Build every index before a client waits for it; log an error of the store, which callers get too."""
        try:
            await self._collections.open()
        except PenultError as error:
            log.warning("collections: %s (%s)", error.message, error.reason)

    async def _drain(self) -> None:
        """Turn readiness off, and serve on until load balancers have noticed."""
        if self._shadows:
            self._shadows.close()
        log.info("draining: not ready from now on, serving %.0f s more", self._config.drain_lead)
        await self._set_health()
        await asyncio.sleep(self._config.drain_lead)

    @property
    def is_ready(self) -> bool:
        """Whether requests should be sent here: models are served, the device works, and no stop was requested."""
        return self._has_started and not self._stop.is_set() and self._recovery.is_well and bool(self._repository.all())

    def _publish_readiness(self) -> None:
        self._keep(self._set_health())

    async def _set_health(self) -> None:
        status = _SERVING if self.is_ready else _NOT_SERVING
        await self._health.set(LIVE_NAME, _SERVING)
        for name in _READINESS_NAMES:
            await self._health.set(name, status)


def _oip(core: DataPlane) -> OipServicer:
    # The generated base answers methods that OipServicer leaves out with UNIMPLEMENTED; its types call them abstract.
    return OipServicer(core)  # type: ignore[abstract]


def _options(config: ServeConfig, is_worker: bool) -> list[tuple[str, int]]:
    age_ms = int(1000 * config.connection_age_s)
    age = [("grpc.max_connection_age_ms", age_ms), ("grpc.max_connection_age_grace_ms", _CONNECTION_GRACE_MS)]
    return [
        *(age if age_ms else ()),
        ("grpc.max_receive_message_length", config.message_max_bytes),
        ("grpc.max_send_message_length", config.message_max_bytes),
        # Two servers on one port by mistake would share its connections silently; workers do so on purpose.
        ("grpc.so_reuseport", int(is_worker)),
        ("grpc.http2.min_ping_interval_without_data_ms", _CLIENT_PING_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # Pings detect within minutes a peer that vanished silently, such as a machine that lost its power.
        ("grpc.keepalive_time_ms", _SERVER_PING_MS),
        ("grpc.keepalive_timeout_ms", _SERVER_PONG_MS),
        # Above some thousands of waiting calls, gRPC drops calls of any client at random, with CANCELLED.
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        # What a client may send of a message before it is asked for: one image without another round trip, but only a
        # part of a large request, which may be refused by its headers. Probing would let this grow to megabytes.
        ("grpc.http2.lookahead_bytes", _UNREAD_BYTES),
        ("grpc.http2.bdp_probe", 0),
        # No compression: photos do not shrink, and 60 KB can unfold to 60 MB (64 of them: 1.6 GB and 17 s).
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]
