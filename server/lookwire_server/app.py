"""The whole server: what it is made of, in which order it starts, and in which order it stops."""

import asyncio
import platform
import signal
import sys
import time
from contextlib import AsyncExitStack

import prometheus_client
import structlog

from lookwire_server import __version__
from lookwire_server.encoding.backend import EncoderBackend
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.encoding.images import ImageDecoder, ImageLimits
from lookwire_server.errors import Unavailable
from lookwire_server.metrics import Metrics
from lookwire_server.models.backends.onnxruntime import OnnxRuntimeBackend
from lookwire_server.models.repository import Repository
from lookwire_server.rpc.server import Server
from lookwire_server.search.collections import Collections
from lookwire_server.settings import Settings

log = structlog.get_logger()


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, or until a part fails for good; then stops in order."""
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    failures: list[str] = []

    def fail(reason: str) -> None:
        """Called on the loop by an owner whose thread or task died."""
        log.error("a part of the server failed, it stops serving", reason=reason)
        failures.append(reason)
        stopping.set()

    def writing_failed(error: BaseException) -> None:
        loop.call_soon_threadsafe(fail, f"writing collections: {error!r}")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    metrics = Metrics()
    metrics.build.labels(__version__, platform.python_version()).set(1)
    async with AsyncExitStack() as stack:
        decoder = ImageDecoder(
            settings.decode_threads, ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        )
        stack.callback(decoder.close)
        repository = Repository(
            settings.model_repository,
            {
                "onnxruntime": OnnxRuntimeBackend(settings.inference_threads),
                "encoder": EncoderBackend(decoder, settings.max_text_bytes, settings.allow_ungated),
            },
            metrics,
            fail,
        )
        stack.push_async_callback(repository.close)
        await repository.load_all()
        collections = await asyncio.to_thread(
            Collections.open,
            settings.data_dir,
            metrics,
            search_threads=settings.search_threads,
            on_failure=writing_failed,
        )
        stack.push_async_callback(asyncio.to_thread, collections.close)
        try:
            server = Server(settings, repository, Encoders(repository), collections, metrics)
            scrape, scraper = prometheus_client.start_http_server(
                settings.metrics_port, settings.metrics_address, metrics.registry
            )
        except (RuntimeError, OSError) as error:
            raise Unavailable(
                f"cannot listen on {settings.grpc_address}:{settings.grpc_port} (gRPC) and "
                f"{settings.metrics_address}:{settings.metrics_port} (metrics): {error}; give free ports with --grpc-port "
                "and --metrics-port"
            ) from error
        stack.callback(scraper.join)
        stack.callback(scrape.shutdown)
        await server.start()
        stack.push_async_callback(server.stop, settings.exit_timeout_seconds)
        log.info(
            "ready",
            seconds=round(time.monotonic() - started, 2),
            cores=settings.cores,
            inference_threads=settings.inference_threads,
            decode_threads=settings.decode_threads,
            search_threads=settings.search_threads,
        )
        metrics_address = f"{settings.metrics_address}:{scrape.server_port}"
        print(f"READY grpc={server.address} metrics={metrics_address}", flush=True)
        await stopping.wait()
        await server.not_serving()
        if not failures and settings.drain_seconds:
            log.info("draining", seconds=settings.drain_seconds)
            await asyncio.sleep(settings.drain_seconds)
        log.info("stopping")
    log.info("stopped")
    if failures:
        sys.exit(f"lookwire-server stopped because a part of it failed: {'; '.join(failures)}")
