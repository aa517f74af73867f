"""Where a configuration comes from: `config.pbtxt` (protobuf text format), or the JSON of a load request."""

from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from lookwire_server.errors import InvalidArgument
from lookwire_server.models.config import ModelConfig, from_message

FILE = "config.pbtxt"
# Largest config that is parsed: a thousand times a usual one.
MAX_BYTES = 4 << 20
# What stands in a version folder -> the backend that serves it.
MODEL_FILES = {"model.onnx": "onnxruntime", "model.py": "python"}


def read(directory: Path, config_name: str = "") -> ModelConfig:
    """Reads the configuration of the model in `directory`; a mistake in it is InvalidArgument with file, line and column.

    The file is `configs/<config_name>.pbtxt` where it exists, else `config.pbtxt`; it may be absent where a version folder
    holds a model file that says what is needed.
    """
    path = directory / FILE
    if config_name and (named := directory / "configs" / f"{config_name}.pbtxt").is_file():
        path = named
    message = model_config_pb2.ModelConfig()
    if path.is_file():
        if (size := path.stat().st_size) > MAX_BYTES:
            raise InvalidArgument(f"{path}: has {size} bytes, at most {MAX_BYTES} are read")
        try:
            text_format.Parse(path.read_text(encoding="utf-8"), message)
        except text_format.ParseError as error:
            raise InvalidArgument(f"{path}:{error}") from None
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    return adopt(message, directory)


def from_json(text: str, directory: Path) -> ModelConfig:
    """The configuration that a load request brings, in place of the file's."""
    if len(text) > MAX_BYTES:
        raise InvalidArgument(f"the config has {len(text)} bytes, at most {MAX_BYTES} are read")
    message = model_config_pb2.ModelConfig()
    try:
        json_format.Parse(text, message)
    except (json_format.ParseError, RecursionError) as error:
        raise InvalidArgument(f"the config is no ModelConfig in JSON: {error}") from None
    return adopt(message, directory)


def adopt(message: model_config_pb2.ModelConfig, directory: Path) -> ModelConfig:
    """The configuration of the model in `directory`: its name, and its backend by the files there if it names none."""
    if message.name and message.name != directory.name:
        raise InvalidArgument(f"{directory / FILE}: name is '{message.name}', but the directory is '{directory.name}'")
    message.name = directory.name
    if not message.backend and not message.platform:
        found = [file for file in MODEL_FILES if any(directory.glob(f"[0-9]*/{file}"))]
        if not found:
            raise InvalidArgument(
                f"model '{message.name}': {directory / FILE} names no 'backend', and no version folder holds "
                f"{' or '.join(MODEL_FILES)}"
            )
        message.backend = MODEL_FILES[found[0]]
        message.default_model_filename = message.default_model_filename or found[0]
    labels = {}
    for output in message.output:
        if output.label_filename:
            labels[output.name] = read_labels(directory, output.label_filename)
    return from_message(message, labels)


def read_labels(directory: Path, filename: str) -> tuple[str, ...]:
    """The class names in a label file, one a line."""
    path = directory / filename
    if not path.resolve().is_relative_to(directory.resolve()):
        raise InvalidArgument(f"model '{directory.name}': label_filename '{filename}' leads out of {directory}")
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"model '{directory.name}': cannot read label_filename '{filename}': {error}") from None
