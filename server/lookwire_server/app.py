"""The whole server: what it is made of, in which order it starts, and in which order it stops."""

import asyncio
import os
import platform
import sys
import time
from contextlib import AsyncExitStack

import structlog

from lookwire_server import __version__
from lookwire_server.encoding.backend import EncoderBackend
from lookwire_server.encoding.encoder import TextCache
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.encoding.images import ImageDecoder, ImageLimits
from lookwire_server.errors import InvalidArgument, Unavailable
from lookwire_server.log import Levels
from lookwire_server.metrics import Metrics
from lookwire_server.metrics_server import MetricsServer
from lookwire_server.models.backends.ensemble import EnsembleBackend
from lookwire_server.models.backends.identity import IdentityBackend
from lookwire_server.models.backends.onnxruntime import OnnxRuntimeBackend
from lookwire_server.models.backends.python import PythonBackend
from lookwire_server.models.cache import ResponseCache
from lookwire_server.models.repository import ControlMode, Repository
from lookwire_server.models.triton_metrics import TritonMetrics
from lookwire_server.rpc.health import HealthServicer
from lookwire_server.rpc.http.server import HttpServer
from lookwire_server.rpc.probes import probe_by
from lookwire_server.rpc.server import SERVICES, Server
from lookwire_server.rpc.v2.servicer import InferenceServicer
from lookwire_server.rpc.v2.shared_memory import SharedMemory
from lookwire_server.search.collections import Collections
from lookwire_server.settings import Settings
from lookwire_server.stop import Stop

log = structlog.get_logger()


async def serve(settings: Settings, levels: Levels) -> None:
    """Serves until SIGTERM or SIGINT, or until a part fails for good; then stops in order.

    `levels` say what is logged, and change as LogSettings requests say.
    """
    started = time.monotonic()
    stop = Stop()
    metrics = Metrics()
    metrics.build.labels(__version__, platform.python_version()).set(1)
    listening = {}
    async with AsyncExitStack() as stack:
        decoder = ImageDecoder(
            settings.decode_threads, ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        )
        stack.callback(decoder.close)
        repository = model_repository(settings, decoder, metrics, stop)
        stack.push_async_callback(close_models, repository, settings.exit_timeout_secs, stop)
        opening = asyncio.create_task(
            asyncio.to_thread(
                Collections.open,
                settings.data_dir,
                metrics,
                search_threads=settings.search_threads,
                on_failure=stop.writing_failed,
                probe=probe_by(Encoders(repository)),
            )
        )
        stack.push_async_callback(close_collections, opening)
        # Models are loaded while the collections are read.
        await repository.start()
        collections = await opening
        health = HealthServicer(repository, SERVICES, strict=settings.strict_readiness)
        inference = inference_servicer(settings, repository, health, levels, metrics)
        if settings.allow_metrics:
            triton = TritonMetrics(repository, cached=settings.cache_bytes > 0)
            scrapes = MetricsServer(settings.metrics_address, settings.metrics_port, metrics.registry, triton.text)
            stack.push_async_callback(asyncio.to_thread, scrapes.stop)
            listening["metrics"] = scrapes.address
        servers: list[Server | HttpServer] = []
        stack.push_async_callback(stop_all, servers, settings.exit_timeout_secs)
        if settings.allow_grpc:
            server = Server(settings, health, inference, Encoders(repository), collections, metrics)
            await server.start()
            servers.append(server)
            listening["grpc"] = server.address
        if settings.allow_http:
            http = await start_http(settings, inference, metrics, stop)
            servers.append(http)
            listening["http"] = f"{settings.http_address}:{http.port}"
        log.info(
            "ready",
            seconds=round(time.monotonic() - started, 2),
            cores=settings.cores,
            inference_threads=settings.inference_threads,
            decode_threads=settings.decode_threads,
            search_threads=settings.search_threads,
        )
        print("READY", *(f"{name}={address}" for name, address in sorted(listening.items())), flush=True)
        await stop.wait()
        health.stop_serving()
        if not stop.failures and settings.drain_secs:
            log.info("draining", seconds=settings.drain_secs)
            await asyncio.sleep(settings.drain_secs)
        log.info("stopping")
    log.info("stopped")
    if stop.failures:
        sys.exit(f"lookwire-server stopped because a part of it failed: {'; '.join(stop.failures)}")


def model_repository(settings: Settings, decoder: ImageDecoder, metrics: Metrics, stop: Stop) -> Repository:
    """The repository with every backend."""
    cache = TextCache(settings.embedding_cache_bytes)
    metrics.embedding_cache_bytes.set_function(lambda: cache.nbytes)
    return Repository(
        settings.model_repository,
        {
            "onnxruntime": OnnxRuntimeBackend(settings.inference_threads, settings.default_max_batch_size),
            "encoder": EncoderBackend(decoder, settings.max_text_bytes, settings.allow_ungated, cache),
            "ensemble": EnsembleBackend(),
            "python": PythonBackend(auto_complete=not settings.disable_auto_complete_config),
            "identity": IdentityBackend(),
        },
        metrics,
        stop.fail,
        mode=ControlMode(settings.model_control_mode),
        startup_models=settings.load_model,
        poll_seconds=settings.repository_poll_secs,
        exit_on_error=settings.exit_on_error,
        config_name=settings.model_config_name,
        auto_complete=not settings.disable_auto_complete_config,
        hold_first_batch=int(debug_hook("TRITONSERVER_DELAY_SCHEDULER")),
        cache=ResponseCache(settings.cache_bytes) if settings.cache_bytes else None,
    )


def inference_servicer(
    settings: Settings, repository: Repository, health: HealthServicer, levels: Levels, metrics: Metrics
) -> InferenceServicer:
    """The V2 protocol, which gRPC and HTTP share."""
    return InferenceServicer(
        repository,
        server_name=settings.id,
        shared_memory=SharedMemory() if settings.allow_client_shm else None,
        response_delay=debug_hook("TRITONSERVER_SERVER_DELAY_GRPC_RESPONSE_SEC"),
        ready=health.ready,
        levels=levels,
        max_stream_bytes=settings.max_inflight_bytes,
        metrics=metrics,
    )


async def start_http(settings: Settings, inference: InferenceServicer, metrics: Metrics, stop: Stop) -> HttpServer:
    """The HTTP server, serving; raises Unavailable if it cannot listen."""
    server = HttpServer(
        inference,
        metrics,
        stop.fail,
        address=settings.http_address,
        port=settings.http_port,
        max_bytes=settings.http_max_input_size,
        max_inflight_bytes=settings.max_inflight_bytes,
        max_connections=settings.max_concurrent_rpcs,
    )
    try:
        await server.start()
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {settings.http_address}:{settings.http_port} for HTTP: {error}; give a free port with "
            "--http-port, or none with --allow-http false"
        ) from error
    return server


async def close_models(repository: Repository, timeout: float, stop: Stop) -> None:
    """Closes the models; an execution that does not end within the timeout does not keep the process."""
    try:
        await asyncio.wait_for(repository.close(), timeout)
    except TimeoutError:
        stop.failures.append(f"models did not finish their work within --exit-timeout-secs {timeout:g}")


async def close_collections(opening: "asyncio.Task[Collections]") -> None:
    """Closes the collections, if they could be opened; whoever waited for that knows why not."""
    await asyncio.wait([opening])
    if opening.exception() is None:
        await asyncio.to_thread(opening.result().close)


async def stop_all(servers: list[Server | HttpServer], timeout: float) -> None:
    """Stops them side by side, so that requests in flight get `timeout` seconds in all."""
    await asyncio.gather(*(server.stop(timeout) for server in servers))


def debug_hook(name: str) -> float:
    """The number in a variable that Triton's own tests set, 0 where it is not set."""
    text = os.environ.get(name, "")
    if not text:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0:
        raise InvalidArgument(f"the variable {name} must be a number, 0 or more, got '{text}'")
    log.warning("requests are held back on purpose: this variable is for tests", variable=name, value=text)
    return value
