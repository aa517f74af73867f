"""What can be set: flags `--grpc-port`, or variables `LOOKWIRE_GRPC_PORT`; flags win.

Where NVIDIA Triton has a flag for the same thing, the name is Triton's. What belongs to a model is set in its repository.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
# The groups of RPCs that --grpc-restricted-protocol names.
PROTOCOLS = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)


def available_cores(cpu_max: Path = CPU_MAX) -> int:
    """The cores that this process may use: those of its affinity, or fewer where its control group has a quota.

    `cpu_max` holds the quota and the period in microseconds, or "max" for no quota (Linux, control groups version 2).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
    except OSError:
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


@dataclass(frozen=True, slots=True)
class Restriction:
    """RPCs that only callers with a certain metadata entry may use. `key` is the header's name without its prefix."""

    protocols: frozenset[str]
    key: str
    value: str

    @classmethod
    def parse(cls, text: object) -> object:
        """From `group[,group]:key=value`."""
        if not isinstance(text, str):
            return text
        groups, _, entry = text.partition(":")
        key, _, value = entry.partition("=")
        names = [name.strip() for name in groups.split(",")]
        if not key or not value:
            raise ValueError("must be group[,group]:key=value")
        if wrong := sorted(set(names) - set(PROTOCOLS)):
            raise ValueError(f"'{wrong[0]}' is no group; groups are {', '.join(PROTOCOLS)}")
        return cls(frozenset(names), key.strip().lower(), value)


def separated(value: object) -> object:
    """The values in a variable's text, which semicolons separate; flags come as a list."""
    return [part for part in value.split(";") if part] if isinstance(value, str) else value


def backend_option(text: str) -> str:
    """Checks `backend,key=value`."""
    backend, comma, option = text.partition(",")
    key, equals, value = option.partition("=")
    if not (backend and comma and key and equals):
        raise ValueError("must be backend,key=value, as onnxruntime,default-max-batch-size=8")
    if text.startswith(DEFAULT_MAX_BATCH_SIZE) and (not value.isdecimal() or int(value) > 1 << 20):
        raise ValueError(f"{key} must be a whole number of rows")
    return text


def cache_option(text: str) -> str:
    """Checks `local,size=bytes`."""
    if text and not (text.startswith(LOCAL_CACHE) and text.removeprefix(LOCAL_CACHE).isdecimal()):
        raise ValueError("must be local,size=bytes; there is no other cache")
    return text


DEFAULT_MAX_BATCH_SIZE = "onnxruntime,default-max-batch-size="
LOCAL_CACHE = "local,size="

T = TypeVar("T")
Repeated = Annotated[tuple[T, ...], NoDecode, BeforeValidator(separated)]
Port = Annotated[int, Field(ge=0, le=65535)]
INT32 = 2**31 - 1  # gRPC's channel options are 32-bit integers
Milliseconds = Annotated[int, Field(ge=1, le=INT32)]
# Triton's names for log formats; the times in this server's logs are ISO 8601 in any case.
LogFormat = Annotated[
    Literal["console", "json"],
    BeforeValidator(lambda text: "console" if text in ("default", "ISO8601") else text),
]


class Settings(BaseSettings):
    """The server's settings, frozen and checked; every field is a flag and a variable."""

    model_config = SettingsConfigDict(env_prefix="LOOKWIRE_", env_ignore_empty=True, frozen=True, extra="forbid")

    model_repository: Repeated[Path] = Field(
        (Path("model_repo"),), min_length=1, description="folder of models, in Triton's layout; may be repeated"
    )
    model_control_mode: Literal["none", "poll", "explicit"] = Field(
        "none",
        description="none: load all models at the start; poll: likewise, and follow changes on disk; explicit: load those "
        "that --load-model and load requests name",
    )
    load_model: Repeated[str] = Field(
        (), description="model to load at the start in explicit mode, * for all; may be repeated"
    )
    repository_poll_secs: float = Field(15.0, gt=0, description="seconds between looks at the disk in poll mode")
    exit_on_error: bool = Field(True, description="end the start if a model cannot be loaded")
    strict_readiness: bool = Field(True, description="be ready only while all models are; if false, once started")
    disable_auto_complete_config: bool = Field(
        False, description="take model configurations as they are written, with nothing filled in from the model"
    )
    model_config_name: str = Field("", description="read <model>/configs/<name>.pbtxt where there is one")
    backend_config: Repeated[Annotated[str, AfterValidator(backend_option)]] = Field(
        (),
        description="backend,key=value; may be repeated. Known: onnxruntime,default-max-batch-size=N, the largest batch of "
        "models whose configuration names none (4)",
    )
    cache_config: Annotated[str, AfterValidator(cache_option)] = Field(
        "", description="local,size=BYTES: a response cache of so many bytes, for models whose configuration wants it"
    )
    allow_ungated: bool = Field(
        False, description="serve encoders whose vectors were never compared with the reference's"
    )
    data_dir: Path = Field(Path("data"), description="folder of the collections; made if it does not exist")

    id: str = Field("lookwire", min_length=1, description="name that the server gives itself in the V2 protocol")
    allow_grpc: bool = Field(True, description="serve gRPC")
    grpc_address: str = Field("127.0.0.1", description="address that gRPC listens on; 0.0.0.0 for all")
    grpc_port: Port = Field(8001, description="port of gRPC; 0 takes a free one")
    max_message_bytes: int = Field(64 << 20, ge=1 << 20, description="largest gRPC message that is taken")
    grpc_restricted_protocol: Repeated[Annotated[Restriction, BeforeValidator(Restriction.parse)]] = Field(
        (),
        description="group[,group]:key=value: only callers that send metadata triton-grpc-protocol-<key>: <value> may use "
        "these RPCs; may be repeated; HTTP is open as it was. inference includes Lookwire's own RPCs. Groups: "
        + ", ".join(PROTOCOLS),
    )
    grpc_keepalive_time: Milliseconds = Field(
        7_200_000, description="milliseconds without activity after which the server pings a client"
    )
    grpc_keepalive_timeout: Milliseconds = Field(20_000, description="milliseconds that it waits for the answer")
    grpc_keepalive_permit_without_calls: bool = Field(False, description="ping clients that have no call in flight too")
    grpc_http2_max_pings_without_data: int = Field(2, ge=0, description="pings without data between; 0 for any number")
    grpc_http2_min_recv_ping_interval_without_data: Milliseconds = Field(
        20_000, description="milliseconds that must lie between a client's pings; lookwire's client pings every 30 s"
    )
    grpc_http2_max_ping_strikes: int = Field(
        2, ge=0, description="pings too early before the connection is closed; 0 for any number"
    )
    grpc_max_connection_age: int = Field(
        0,
        ge=0,
        le=INT32,
        description="milliseconds after which a connection is closed, so that clients spread anew; 0: never",
    )
    grpc_max_connection_age_grace: int = Field(
        0, ge=0, le=INT32, description="milliseconds that calls on such a connection get to finish; 0: all they need"
    )

    grpc_use_ssl: bool = Field(False, description="TLS on gRPC; needs --grpc-server-cert and --grpc-server-key")
    grpc_use_ssl_mutual: bool = Field(
        False, description="TLS, and clients must have a certificate too; needs --grpc-root-cert as well"
    )
    grpc_server_cert: Path | None = Field(None, description="file of the server's certificate chain, PEM")
    grpc_server_key: Path | None = Field(None, description="file of the certificate's private key, PEM")
    grpc_root_cert: Path | None = Field(None, description="file of the certificates that vouch for clients, PEM")

    allow_http: bool = Field(True, description="serve the V2 protocol over HTTP")
    http_address: str = Field("127.0.0.1", description="address that HTTP listens on")
    http_port: Port = Field(8000, description="port of HTTP; 0 takes a free one")
    http_max_input_size: int = Field(64 << 20, ge=1, description="largest HTTP request body, in bytes")

    allow_metrics: bool = Field(True, description="serve /metrics")
    metrics_address: str = Field("127.0.0.1", description="address that /metrics listens on")
    metrics_port: Port = Field(8002, description="port of /metrics; 0 takes a free one")

    max_inflight_bytes: int = Field(1 << 30, ge=1, description="bytes of all requests in flight; more is refused")
    max_concurrent_rpcs: int = Field(4096, ge=1, description="RPCs in flight; one more is RESOURCE_EXHAUSTED")
    max_image_bytes: int = Field(32 << 20, ge=1, description="largest encoded image")
    max_image_pixels: int = Field(64_000_000, ge=1, description="largest width x height of an image")
    max_text_bytes: int = Field(64 << 10, ge=1, description="longest text, in bytes of UTF-8")
    embedding_cache_bytes: int = Field(
        64 << 20,
        ge=0,
        description="bytes that the vectors of texts may take which are kept for the next time, 0 for none; equal texts that "
        "are asked for at once are embedded once in any case",
    )
    allow_client_shm: bool = Field(
        False, description="let clients on this machine pass tensors in shared memory; they must be trusted"
    )
    cores: int = Field(
        default_factory=available_cores,
        ge=1,
        description="processor cores to share out among inference, decoding and search; all that it may use unless given",
    )

    drain_secs: float = Field(
        0.0, ge=0, description="seconds to go on serving after SIGTERM while health says NOT_SERVING"
    )
    exit_timeout_secs: float = Field(30.0, gt=0, description="seconds that requests in flight get to finish at exit")

    log_format: LogFormat = Field("console", description="form of the log on stderr")
    log_verbose: int = Field(0, ge=0, description="1 or more: log details too")
    log_info: bool = Field(True, description="log what happens")
    log_warning: bool = Field(True, description="log warnings")
    log_error: bool = Field(True, description="log errors")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not (self.allow_grpc or self.allow_http):
            raise ValueError("--allow-grpc and --allow-http are both false: nothing would be served")
        if self.model_control_mode != "explicit" and self.load_model:
            raise ValueError("--load-model needs --model-control-mode explicit")
        if (self.grpc_use_ssl or self.grpc_use_ssl_mutual) and not (self.grpc_server_cert and self.grpc_server_key):
            raise ValueError("TLS needs --grpc-server-cert and --grpc-server-key")
        if self.grpc_use_ssl_mutual and not self.grpc_root_cert:
            raise ValueError("--grpc-use-ssl-mutual needs --grpc-root-cert")
        groups = [group for restriction in self.grpc_restricted_protocol for group in restriction.protocols]
        if repeated := sorted({group for group in groups if groups.count(group) > 1}):
            raise ValueError(f"--grpc-restricted-protocol names the group '{repeated[0]}' twice")
        return self

    @property
    def default_max_batch_size(self) -> int:
        """The largest batch of ONNX models whose configuration names none."""
        sizes = [text.removeprefix(DEFAULT_MAX_BATCH_SIZE) for text in self.backend_config]
        return next((int(size) for size in reversed(sizes) if size.isdecimal()), 4)

    @property
    def without_effect(self) -> list[str]:
        """Backend options that have no effect here."""
        return [text for text in self.backend_config if not text.startswith(DEFAULT_MAX_BATCH_SIZE)]

    @property
    def cache_bytes(self) -> int:
        """Size of the response cache; 0 for none."""
        return int(self.cache_config.removeprefix(LOCAL_CACHE) or 0)

    @property
    def inference_threads(self) -> int:
        """Threads of all onnxruntime sessions of a model: one a core. Their priority is low: what feeds them goes first."""
        return self.cores

    @property
    def decode_threads(self) -> int:
        """Threads that decode images of each lane."""
        return max(1, self.cores // 2)

    @property
    def search_threads(self) -> int:
        """Threads of one search."""
        return self.cores
