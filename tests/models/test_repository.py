"""The repository in explicit control: loads, reloads, unloads, overrides, and what the index says of them."""

import asyncio
import json
import shutil
import tempfile
from pathlib import Path

import pytest

from lookwire_server.errors import FailedPrecondition, InvalidArgument, LoadFailure, NotFound, Unavailable
from lookwire_server.models import retired
from lookwire_server.models.repository import ControlMode
from tests.models.scaling import answer, repository, states, write, write_wrapper

ALL = "version_policy { all { } }"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions that are replaced close without the pause for late callers."""
    monkeypatch.setattr(retired, "HANDOVER_SECONDS", 0.0)


def below(path: Path) -> set[str]:
    return {file.name for file in path.rglob("*")}


async def until(condition: object) -> None:
    """Waits until a condition holds, at most five seconds."""
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_explicit_serves_what_is_loaded(tmp_path: Path) -> None:
    """Nothing is served until it is loaded, then it is, and after its unload it is known but not ready."""
    write(tmp_path, "m", {1: 2, 3: 5})
    async with repository(tmp_path) as (served, scaling):
        assert served.ready()
        assert states(served) == [("m", None, "", "")]
        with pytest.raises(NotFound, match="Request for unknown model: 'm' is not found"):
            served.get("m")

        await served.load_model("m")
        assert await answer(served, "m") == 5
        assert served.versions("m") == [3]
        assert list(served.load_seconds) == [("m", 3)]
        with pytest.raises(NotFound, match="'m' version 1 is not found"):
            served.get("m", 1)

        await served.unload_model("m")
        assert served.ready()
        with pytest.raises(Unavailable, match=r"'m' has no available versions.*is not at ready state"):
            served.get("m")
        with pytest.raises(Unavailable, match="'m' version 3 is not at ready state"):
            served.get("m", 3)
        await until(lambda: states(served) == [("m", 3, "UNAVAILABLE", "unloaded")])
        assert scaling.closed == [("m", 3)]


async def test_nothing_changed_nothing_loaded(tmp_path: Path) -> None:
    """A load of a model that has not changed on disk is no reload; a changed file is one."""
    write(tmp_path, "m", {1: 2})
    async with repository(tmp_path) as (served, scaling):
        await served.load_model("m")
        await served.load_model("m")
        assert scaling.loads == [("m", 1)]

        write(tmp_path, "m", {1: 33})
        await served.load_model("m")
        assert scaling.loads == [("m", 1), ("m", 1)]
        assert await answer(served, "m") == 33


async def test_reload_loads_changed_versions_only(tmp_path: Path) -> None:
    """A new version is loaded beside the others; another policy unloads without loading; a shared file reloads all."""
    write(tmp_path, "m", {1: 2, 2: 3}, ALL)
    async with repository(tmp_path) as (served, scaling):
        await served.load_model("m")
        write(tmp_path, "m", {3: 4}, ALL)
        await served.load_model("m")
        assert scaling.loads == [("m", 1), ("m", 2), ("m", 3)]
        assert served.versions("m") == [1, 2, 3]

        write(tmp_path, "m", {}, "version_policy { specific { versions: [3, 9] } }")
        await served.load_model("m")
        assert len(scaling.loads) == 3
        assert served.versions("m") == [3]

        (tmp_path / "m" / "labels.txt").write_text("one")
        await served.load_model("m")
        assert scaling.loads[3:] == [("m", 3)]


async def test_old_version_serves_until_the_new_is_ready(tmp_path: Path) -> None:
    """While a reload is under way the old version answers; the swap loses no request."""
    write(tmp_path, "m", {1: 2})
    async with repository(tmp_path) as (served, scaling):
        await served.load_model("m")
        scaling.held.add(("m", 1))
        write(tmp_path, "m", {1: 33})
        loading = asyncio.create_task(served.load_model("m"))
        await until(lambda: len(scaling.loads) == 2)
        assert await answer(served, "m") == 2
        assert states(served) == [("m", 1, "READY", "")]
        assert served.ready()

        scaling.held.clear()
        answers = []
        while not loading.done():
            answers.append(await answer(served, "m"))
        await loading
        assert await answer(served, "m") == 33
        assert set(answers) <= {2, 33}
        await until(lambda: scaling.closed == [("m", 1)])


async def test_failed_reload_keeps_the_old(tmp_path: Path) -> None:
    """A version that cannot be loaded leaves the old one serving; the index says why, and a load says it again."""
    write(tmp_path, "m", {1: 2})
    async with repository(tmp_path) as (served, _):
        await served.load_model("m")
        write(tmp_path, "m", {2: "x"}, ALL)
        for _ in range(2):
            with pytest.raises(InvalidArgument, match="load failed for model 'm': version 2 is at UNAVAILABLE state"):
                await served.load_model("m")
        assert await answer(served, "m") == 2
        assert served.ready()
        assert states(served) == [("m", 1, "READY", ""), ("m", 2, "UNAVAILABLE", "factor.txt holds 'x', not a number")]

        (tmp_path / "m" / "config.pbtxt").write_text("max_batch_siz: 1")
        with pytest.raises(InvalidArgument, match=r"config.pbtxt:1:1 : Message type .* has no field"):
            await served.load_model("m")
        assert await answer(served, "m") == 2
        assert "max_batch_siz" in states(served)[0][3]

        write(tmp_path, "m", {2: 44}, ALL)
        await served.load_model("m")
        assert states(served) == [("m", 1, "READY", ""), ("m", 2, "READY", "")]


async def test_fault_of_a_backend_is_not_shown(tmp_path: Path) -> None:
    """An exception that is no LookwireError ends the load in a definite state, without its text."""
    write(tmp_path, "m", {1: "bug"})
    async with repository(tmp_path) as (served, _):
        with pytest.raises(InvalidArgument, match="cause is in the server's log") as failure:
            await served.load_model("m")
        assert "secret" not in failure.value.message
        assert states(served)[0][2:] == ("UNAVAILABLE", "backend 'scaling' failed; the cause is in the server's log")
        assert served.ready()


async def test_loading_is_shown_and_does_not_make_unready(tmp_path: Path) -> None:
    """A model that is loaded for the first time is LOADING, not found ready, and the server stays ready."""
    write(tmp_path, "m", {1: 2})
    changes = []
    async with repository(tmp_path) as (served, scaling):
        served.on_change.append(lambda: changes.append(served.versions("m")))
        scaling.held.add(("m", 1))
        loading = asyncio.create_task(served.load_model("m"))
        await until(lambda: scaling.loads)
        assert states(served) == [("m", 1, "LOADING", "")]
        assert served.ready()
        with pytest.raises(Unavailable, match="version 1 is not at ready state"):
            served.get("m", 1)
        scaling.held.clear()
        await loading
        assert changes[0] == []
        assert changes[-1] == [1]


async def test_caller_that_gives_up(tmp_path: Path) -> None:
    """A load whose caller went away goes on to its end; one that waited for its turn does not begin."""
    write(tmp_path, "m", {1: 2})
    async with repository(tmp_path) as (served, scaling):
        scaling.held.add(("m", 1))
        first = asyncio.create_task(served.load_model("m"))
        await until(lambda: scaling.loads)
        second = asyncio.create_task(served.unload_model("m"))
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        scaling.held.clear()
        await until(lambda: served.versions("m") == [1])


async def test_close_while_loading(tmp_path: Path) -> None:
    """A repository that is closed while models load gives back what was loaded already."""
    write(tmp_path, "m", {1: 2, 2: 3}, ALL)
    async with repository(tmp_path) as (served, scaling):
        scaling.held.add(("m", 2))
        loading = asyncio.create_task(served.load_model("m"))
        await until(lambda: len(scaling.loads) == 2)
        await served.close()
        assert loading.done()
        assert scaling.closed == [("m", 1)]
        with pytest.raises(Unavailable, match="stopping"):
            await served.load_model("m")


async def test_config_override(tmp_path: Path) -> None:
    """A config that comes with the load takes the file's place, until the folder changes or the model is unloaded."""
    write(tmp_path, "m", {1: 2, 2: 3})
    config = json.dumps(
        {
            "backend": "scaling",
            "input": [{"name": "x", "data_type": "TYPE_INT32", "dims": [1]}],
            "output": [{"name": "y", "data_type": "TYPE_INT32", "dims": [1]}],
            "max_batch_size": 8,
            "version_policy": {"specific": {"versions": [1]}},
        }
    )
    async with repository(tmp_path) as (served, scaling):
        await served.load_model("m", config)
        assert served.versions("m") == [1]
        await served.load_model("m")
        assert served.versions("m") == [1]
        await served.load_model("m", config.replace("8", "16"))
        assert served.get("m").config.max_batch_size == 16
        assert len(scaling.loads) == 2

        with pytest.raises(InvalidArgument, match=r"failed to load 'm', load failed for model 'm': the config is no"):
            await served.load_model("m", '"parameters": {"config": {{"max_batch_size": "16"}}}')
        assert served.get("m").config.max_batch_size == 16

        await served.unload_model("m")
        await served.load_model("m")
        assert served.versions("m") == [2]


async def test_file_override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that come with the load take the folder's place; they are gone from disk once the model is."""
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(kept))
    root = tmp_path / "models"
    write(root, "m", {3: 5})
    config = (root / "m" / "config.pbtxt").read_text()
    files = {"file:config.pbtxt": config.encode(), "file:1/factor.txt": b"7"}
    override = json.dumps(
        {
            "backend": "scaling",
            "input": [{"name": "x", "data_type": "TYPE_INT32", "dims": [1]}],
            "output": [{"name": "y", "data_type": "TYPE_INT32", "dims": [1]}],
        }
        | {"max_batch_size": 8}
    )
    async with repository(root) as (served, _):
        await served.load_model("m")
        with pytest.raises(LoadFailure, match=r"failed to load 'm', failed to poll from model repository"):
            await served.load_model("m", None, files)
        assert served.versions("m") == [3]

        for name in ("m", "other"):
            await served.load_model(name, override, files)
            assert served.versions(name) == [1]
            assert await answer(served, name) == 7
        await served.load_model("m")
        assert served.versions("m") == [1]
        assert len(list(kept.iterdir())) == 2

        await served.unload_model("m")
        await served.load_model("m")
        assert served.versions("m") == [3]
        await served.unload_model("other")
        await until(lambda: not list(kept.iterdir()))
        assert [row[0] for row in states(served)] == ["m"]
        with pytest.raises(InvalidArgument):
            await served.load_model("other", override, {"file:1/factor.txt": b"x"})
        assert not list(kept.iterdir())
        await served.load_model("other", override, files)
    assert not list(kept.iterdir())


@pytest.mark.parametrize(
    "path",
    ["../../x", "/etc/x", "1/../../x", "1//x", "", "1/", ".", "1/./x", "..\\x"],
)
async def test_files_stay_in_their_folder(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that leads out of the model's folder, or nowhere, is refused before anything is written."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    (tmp_path / "models").mkdir()
    async with repository(tmp_path / "models") as (served, _):
        with pytest.raises(InvalidArgument, match=r"failed to load 'm'.*the file parameter"):
            await served.load_model("m", "{}", {f"file:{path}": b"x"})
        assert states(served) == []
    assert below(tmp_path) == {"kept", "models"}


@pytest.mark.parametrize("files", [{"file:" + "A" * 256: b"a"}, {"file:1": b"a", "file:1/b": b"b"}, {"file:\0": b"a"}])
async def test_files_that_the_disk_refuses(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Names that the file system does not take are a load failure in Triton's words."""
    async with repository(tmp_path) as (served, _):
        with pytest.raises(LoadFailure, match=r"failed to load 'm', failed to poll from model repository"):
            await served.load_model("m", "{}", files)
        assert states(served) == []


@pytest.mark.parametrize("name", ["unknown", "...", "..my_model", "a" * 300, "\0", ".git", "empty"])
async def test_unknown_names(tmp_path: Path, name: str) -> None:
    """A model that no folder holds cannot be loaded, and leaves no trace; unloading one is nothing."""
    (tmp_path / "empty").mkdir()
    (tmp_path / ".git" / "1").mkdir(parents=True)
    async with repository(tmp_path) as (served, _):
        with pytest.raises(LoadFailure, match=r"failed to load .*failed to poll from model repository"):
            await served.load_model(name)
        await served.unload_model(name)
        assert states(served) == []
        assert served.ready()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *[
            (name, "must not contain path traversal")
            for name in ("../etc", "a/..", "..", " ..", "/etc", "m/", "a\\b", ".")
        ],
        *[(name, "Model name cannot be empty") for name in ("", " ", "\t", " \t \n ")],
    ],
)
async def test_names_that_lead_elsewhere(tmp_path: Path, name: str, words: str) -> None:
    """Names that are blank or lead out of the repository are refused in Triton's words; an unload ignores them."""
    async with repository(tmp_path) as (served, _):
        with pytest.raises(InvalidArgument, match=words):
            await served.load_model(name)
        await served.unload_model(name)


async def test_loading_in_other_modes_is_refused(tmp_path: Path) -> None:
    """Where the server itself decides what is loaded, load and unload are Unavailable and say how to get them."""
    write(tmp_path, "m", {1: 2})
    for mode in (ControlMode.NONE, ControlMode.POLL):
        async with repository(tmp_path, mode=mode) as (served, _):
            for call in (served.load_model, served.unload_model):
                with pytest.raises(
                    Unavailable, match="explicit model load / unload is not allowed if polling is enabled"
                ):
                    await call("m")
            assert await answer(served, "m") == 2


async def test_a_model_loads_what_it_needs(tmp_path: Path) -> None:
    """Loading a model loads the one it needs; unloading it may take that along, unless another needs it."""
    write(tmp_path, "inner", {1: 2})
    write_wrapper(tmp_path, "outer", "inner")
    write_wrapper(tmp_path, "second", "inner")
    async with repository(tmp_path) as (served, _):
        await served.load_model("outer")
        await served.load_model("second")
        assert await answer(served, "outer") == 2

        await served.unload_model("outer", dependents=True)
        assert served.versions("inner") == [1]
        await served.unload_model("second", dependents=True)
        assert served.models() == []
        await served.load_model("outer")
        await served.unload_model("outer")
        assert served.versions("inner") == [1]


async def test_a_model_without_what_it_needs_is_not_ready(tmp_path: Path) -> None:
    """Unloading a model makes those that need it unavailable; loading either again brings them back."""
    write(tmp_path, "inner", {1: 2})
    write_wrapper(tmp_path, "outer", "inner")
    async with repository(tmp_path) as (served, _):
        await served.load_model("outer")
        for revive in ("inner", "outer"):
            await served.unload_model("inner")
            assert ("outer", 1, "UNAVAILABLE", "needs model 'inner', which is not ready") in states(served)
            assert not served.ready()
            with pytest.raises(Unavailable, match="'outer' has no available versions"):
                served.get("outer")
            await served.load_model(revive)
            assert await answer(served, "outer") == 2

        await served.unload_model("inner")
        await served.unload_model("outer")
        await served.load_model("inner")
        assert served.versions("outer") == []
        assert served.ready()


async def test_a_kept_version_stays_until_its_user_is_replaced(tmp_path: Path) -> None:
    """A model that keeps another's version is loaded again after it, and stays on the old one if that fails."""
    write(tmp_path, "tower", {1: 2})
    write_wrapper(tmp_path, "encoder", "tower", keep=True)
    async with repository(tmp_path) as (served, scaling):
        await served.load_model("encoder")
        write(tmp_path, "tower", {1: 33})
        await served.load_model("tower")
        assert await answer(served, "encoder") == 33
        await until(lambda: scaling.closed == [("tower", 1)])

        shutil.move(tmp_path / "encoder", tmp_path / "away")
        write(tmp_path, "tower", {1: 444})
        await served.load_model("tower")
        assert await answer(served, "tower") == 444
        assert await answer(served, "encoder") == 33
        assert "failed to poll" in next(row[3] for row in states(served) if row[0] == "encoder")
        assert scaling.closed == [("tower", 1)]

        shutil.move(tmp_path / "away", tmp_path / "encoder")
        await served.load_model("encoder")
        assert await answer(served, "encoder") == 444
        await until(lambda: len(scaling.closed) == 2)

        await served.unload_model("tower")
        with pytest.raises(Unavailable):
            served.get("encoder")
        await until(lambda: len(scaling.closed) == 3)
        await served.load_model("tower")
        assert await answer(served, "encoder") == 444


async def test_loading_a_model_loads_what_changed_below_it(tmp_path: Path) -> None:
    """A load looks at the models needed as well, so that files that were exported together are loaded together."""
    write(tmp_path, "tower", {1: 2})
    write_wrapper(tmp_path, "encoder", "tower", keep=True)
    async with repository(tmp_path) as (served, _):
        await served.load_model("encoder")
        write(tmp_path, "tower", {1: 33})
        (tmp_path / "encoder" / "1" / "note").touch()
        await served.load_model("encoder")
        assert await answer(served, "encoder") == 33
        assert await answer(served, "tower") == 33


async def test_models_that_need_each_other(tmp_path: Path) -> None:
    """A circle of needs is an error that names the models, not a wait without end."""
    write_wrapper(tmp_path, "a", "b")
    write_wrapper(tmp_path, "b", "a")
    write_wrapper(tmp_path, "self", "self")
    async with repository(tmp_path) as (served, _):
        for name in ("a", "b", "self"):
            with pytest.raises(InvalidArgument, match=f"load failed for model '{name}'.*needs itself"):
                await asyncio.wait_for(served.load_model(name), 5)
        results = await asyncio.wait_for(
            asyncio.gather(served.load_model("a"), served.load_model("b"), return_exceptions=True), 5
        )
        assert all(isinstance(result, InvalidArgument) for result in results)


async def test_many_loads_and_unloads_at_once(tmp_path: Path) -> None:
    """Loads and unloads of the same and of other models, at once and in any order, end in what the last one asked for."""
    write(tmp_path, "inner", {1: 2})
    write_wrapper(tmp_path, "outer", "inner", keep=True)
    async with repository(tmp_path) as (served, scaling):
        await asyncio.wait_for(
            asyncio.gather(
                *(
                    call(name)
                    for _ in range(20)
                    for name in ("inner", "outer")
                    for call in (served.load_model, served.unload_model)
                )
            ),
            20,
        )
        await served.load_model("outer")
        assert await answer(served, "outer") == 2
        await served.unload_model("outer", dependents=True)
        await until(lambda: len(scaling.closed) == len(scaling.loads))
    assert len(scaling.closed) == len(scaling.loads)


async def test_failed_need_is_told(tmp_path: Path) -> None:
    """A model whose need cannot be served fails with the need's own reason."""
    write(tmp_path, "inner", {1: "x"})
    write_wrapper(tmp_path, "outer", "inner")
    async with repository(tmp_path) as (served, _):
        with pytest.raises(InvalidArgument, match=r"needs model 'inner', which cannot be served: factor.txt holds 'x'"):
            await served.load_model("outer")
        with pytest.raises(FailedPrecondition):
            await served.need("inner", by="outer")
