"""What can be set: flags `--grpc-port`, or variables `LOOKWIRE_GRPC_PORT`; flags win.

What belongs to a model is set in its repository.
"""

import math
import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


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


class Settings(BaseSettings):
    """The server's settings, frozen and checked; every field is a flag and a variable."""

    model_config = SettingsConfigDict(
        env_prefix="LOOKWIRE_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="lookwire-server",
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    model_repository: Path = Field(Path("model_repo"), description="folder of the models, in Triton's layout")
    data_dir: Path = Field(Path("data"), description="folder of the collections; made if it does not exist")
    grpc_address: str = Field("127.0.0.1", description="address that gRPC listens on; 0.0.0.0 for all")
    grpc_port: int = Field(8001, ge=0, le=65535, description="port of gRPC; 0 takes a free one")
    metrics_address: str = Field("127.0.0.1", description="address that /metrics listens on")
    metrics_port: int = Field(8002, ge=0, le=65535, description="port of /metrics; 0 takes a free one")
    max_message_bytes: int = Field(64 << 20, ge=1 << 20, description="largest gRPC message that is taken")
    max_inflight_bytes: int = Field(1 << 30, ge=1, description="bytes of all requests in flight; more is refused")
    max_concurrent_rpcs: int = Field(4096, ge=1, description="RPCs in flight; one more is RESOURCE_EXHAUSTED")
    max_image_bytes: int = Field(32 << 20, ge=1, description="largest encoded image")
    max_image_pixels: int = Field(64_000_000, ge=1, description="largest width x height of an image")
    max_text_bytes: int = Field(64 << 10, ge=1, description="longest text, in bytes of UTF-8")
    cores: int = Field(
        default_factory=available_cores,
        ge=1,
        description="processor cores to share out among inference, decoding and search; all that it may use unless given",
    )
    drain_seconds: float = Field(
        0.0, ge=0, description="seconds to go on serving after SIGTERM while health says NOT_SERVING"
    )
    exit_timeout_seconds: float = Field(30.0, gt=0, description="seconds that requests in flight get to finish at exit")
    allow_ungated: bool = Field(
        False, description="serve encoders whose vectors were never compared with the reference's"
    )
    log_format: Literal["console", "json"] = Field("console", description="form of the log on stderr")

    @property
    def inference_threads(self) -> int:
        """Threads of one onnxruntime session: with decoding and search, about one a core in all."""
        return max(1, self.cores // 2)

    @property
    def decode_threads(self) -> int:
        """Threads that decode images."""
        return max(1, self.cores // 2)

    @property
    def search_threads(self) -> int:
        """Threads that search."""
        return max(1, self.cores // 4)
