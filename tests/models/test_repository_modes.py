"""What is loaded when: at the start, on changes on disk, from which folders and versions."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lookwire_server.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from lookwire_server.models.cache import ResponseCache
from lookwire_server.models.repository import ControlMode
from tests.models.scaling import answer, repository, states, write, write_wrapper

NONE, POLL, EXPLICIT = ControlMode.NONE, ControlMode.POLL, ControlMode.EXPLICIT


async def until(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds, at most five seconds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_all_are_loaded_at_the_start(tmp_path: Path) -> None:
    """Mode none loads every model, those needed by others once, and is ready then."""
    write(tmp_path, "z", {1: 2})
    write_wrapper(tmp_path, "a", "z", keep=True)
    (tmp_path / "notes").mkdir()
    async with repository(tmp_path, mode=NONE, start=False) as (served, scaling):
        assert not served.ready()
        await served.start()
        assert served.ready()
        assert [model.config.name for model in served.models()] == ["a", "z"]
        assert scaling.loads == [("z", 1)]
        assert await answer(served, "a") == 2


async def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """A start with models that cannot be served is one error that lists each with its reason."""
    write(tmp_path, "good", {1: 2})
    write(tmp_path, "bad", {1: "x"})
    write(tmp_path, "empty", {})
    write_wrapper(tmp_path, "outer", "bad")
    (tmp_path / "typo" / "1").mkdir(parents=True)
    (tmp_path / "typo" / "config.pbtxt").write_text('backend: "scalling"')
    async with repository(tmp_path, mode=NONE, start=False) as (served, _):
        with pytest.raises(FailedPrecondition) as failure:
            await served.start()
    lines = failure.value.message.splitlines()
    assert lines[0] == "4 of 5 models cannot be served:"
    assert lines[1] == "  bad: version 1: factor.txt holds 'x', not a number"
    assert "versions are folders named 1, 2, ...; found none" in lines[2]
    assert lines[3].startswith("  outer: version 1: needs model 'bad', which cannot be served: ")
    assert "backend 'scalling' is not one of scaling, wrapping" in lines[4]


async def test_start_without_what_fails(tmp_path: Path) -> None:
    """Told to go on, the server starts without the models that fail: it is not ready, and the index says why."""
    write(tmp_path, "good", {1: 2})
    write(tmp_path, "bad", {1: "x"})
    async with repository(tmp_path, mode=EXPLICIT, exit_on_error=False, startup_models=["*"]) as (served, _):
        assert not served.ready()
        assert await answer(served, "good") == 2
        assert ("bad", 1, "UNAVAILABLE", "factor.txt holds 'x', not a number") in states(served)
        with pytest.raises(Unavailable):
            served.get("bad")
        await served.unload_model("bad")
        assert served.ready()


async def test_startup_models(tmp_path: Path) -> None:
    """Explicit control loads the models named at the start, nothing else; an unknown one is an error."""
    write(tmp_path, "a", {1: 2})
    write(tmp_path, "b", {1: 3})
    async with repository(tmp_path, mode=EXPLICIT, startup_models=["b"]) as (served, _):
        assert states(served) == [("a", None, "", ""), ("b", 1, "READY", "")]
    async with repository(tmp_path, mode=EXPLICIT, start=False, startup_models=["b", "c"]) as (served, _):
        with pytest.raises(FailedPrecondition, match=r"failed to load 'c', failed to poll from model repository"):
            await served.start()


@pytest.mark.parametrize(
    ("mode", "names", "words"),
    [(EXPLICIT, ["*", "a"], "must stand alone"), (NONE, ["a"], "needs --model-control-mode")],
)
async def test_contradictory_startup_models(tmp_path: Path, mode: ControlMode, names: list[str], words: str) -> None:
    """Names that the mode gives no meaning are refused."""
    write(tmp_path, "a", {1: 2})
    async with repository(tmp_path, mode=mode, startup_models=names, start=False) as (served, _):
        with pytest.raises(InvalidArgument, match=words):
            await served.start()


async def test_empty_and_missing_folders(tmp_path: Path) -> None:
    """An empty repository is an error where all is loaded at the start, and else none; a missing one always is."""
    for mode in ControlMode:
        async with repository(tmp_path / "nowhere", mode=mode, start=False) as (served, _):
            with pytest.raises(NotFound, match="--model-repository"):
                await served.start()
    for mode in (POLL, EXPLICIT):
        async with repository(tmp_path, mode=mode) as (served, _):
            assert served.ready()
    async with repository(tmp_path, mode=NONE, start=False) as (served, _):
        with pytest.raises(FailedPrecondition, match=r"holds no model: no <model>/config.pbtxt"):
            await served.start()


async def test_two_folders(tmp_path: Path) -> None:
    """Models come from all folders; one that two folders hold is unavailable until it is in one only."""
    write(tmp_path / "one", "a", {1: 2})
    write(tmp_path / "two", "b", {1: 3})
    write(tmp_path / "one", "both", {1: 4})
    write(tmp_path / "two", "both", {1: 5})
    async with repository(tmp_path / "one", tmp_path / "two", mode=NONE, exit_on_error=False) as (served, _):
        assert await answer(served, "a") == 2
        assert await answer(served, "b") == 3
        assert ("both", None, "UNAVAILABLE", "model appears in two or more repositories") in states(served)
    async with repository(tmp_path / "one", tmp_path / "two") as (served, _):
        with pytest.raises(Exception, match="two or more repositories"):
            await served.load_model("both")
        assert ("both", None, "UNAVAILABLE", "model appears in two or more repositories") in states(served)
        shutil.rmtree(tmp_path / "one" / "both")
        await served.load_model("both")
        assert await answer(served, "both") == 5


async def test_polling_follows_the_disk(tmp_path: Path) -> None:
    """New models and versions appear, changed ones are loaded again, removed ones go; a failure leaves the old."""
    write(tmp_path, "a", {1: 2})
    async with repository(tmp_path, mode=POLL, poll_seconds=0.02) as (served, scaling):
        write(tmp_path, "b", {1: 3})
        await until(lambda: served.versions("b") == [1])
        write(tmp_path, "a", {2: 44})
        await until(lambda: served.versions("a") == [2])
        (tmp_path / "a" / "2" / "factor.txt").write_text("x")
        await until(lambda: ("a", 2, "READY", "factor.txt holds 'x', not a number") in states(served))
        loads = len(scaling.loads)
        await asyncio.sleep(0.1)
        assert len(scaling.loads) == loads
        assert await answer(served, "a") == 44
        (tmp_path / "a" / "2" / "factor.txt").write_text("555")
        await until(lambda: ("a", 2, "READY", "") in states(served))
        assert await answer(served, "a") == 555

        (tmp_path / "b").rename(tmp_path.parent / f"{tmp_path.name}-away")
        await until(lambda: served.versions("b") == [])
        with pytest.raises(Unavailable, match="Request for unknown model: 'b' has no available versions"):
            served.get("b")
        assert served.ready()
        (tmp_path.parent / f"{tmp_path.name}-away").rename(tmp_path / "b")
        await until(lambda: served.versions("b") == [1])


async def test_polling_outlives_an_unreadable_folder(tmp_path: Path) -> None:
    """A repository that cannot be read for a while keeps what is served, and is followed again afterwards."""
    root = tmp_path / "models"
    write(root, "a", {1: 2})
    async with repository(root, mode=POLL, poll_seconds=0.02) as (served, _):
        root.rename(tmp_path / "away")
        await asyncio.sleep(0.1)
        assert await answer(served, "a") == 2
        assert states(served) == [("a", 1, "READY", "")]
        (tmp_path / "away").rename(root)
        write(root, "a", {1: 33})
        await until(lambda: served.versions("a") == [1] and served.load_seconds != {})
        async with asyncio.timeout(5):
            while await answer(served, "a") != 33:
                await asyncio.sleep(0.01)


async def test_version_folders(tmp_path: Path) -> None:
    """The policies pick among folders named by integers; leading zeros and other names are no versions."""
    write(tmp_path, "m", {1: 1, 2: 2, 10: 10})
    for name in ("011", "next", "-3"):
        (tmp_path / "m" / name).mkdir()
    for policy, expected in {
        "": [10],
        "version_policy { latest { num_versions: 2 } }": [2, 10],
        "version_policy { all { } }": [1, 2, 10],
        "version_policy { specific { versions: [2, 5] } }": [2],
    }.items():
        write(tmp_path, "m", {}, policy)
        async with repository(tmp_path, mode=NONE) as (served, _):
            assert served.versions("m") == expected
            assert served.get("m").version == expected[-1]


async def test_config_by_name_and_without_completion(tmp_path: Path) -> None:
    """configs/<name>.pbtxt takes the file's place where it exists; without completion the config must be whole."""
    write(tmp_path, "m", {1: 2, 2: 3})
    (tmp_path / "m" / "configs").mkdir()
    text = (tmp_path / "m" / "config.pbtxt").read_text()
    (tmp_path / "m" / "configs" / "first.pbtxt").write_text(f"{text} version_policy {{ specific {{ versions: [1] }} }}")
    write(tmp_path, "other", {2: 3})
    async with repository(tmp_path, mode=NONE, config_name="first") as (served, _):
        assert (served.versions("m"), served.versions("other")) == ([1], [2])
    (tmp_path / "m" / "config.pbtxt").write_text('backend: "scaling"')
    async with repository(tmp_path, auto_complete=False) as (served, _):
        with pytest.raises(InvalidArgument, match="auto-completion is switched off"):
            await served.load_model("m")
        await served.load_model("other")


async def test_response_cache_where_the_config_asks(tmp_path: Path) -> None:
    """Equal requests to a model with response_cache are answered from the cache, if the server has one."""
    write(tmp_path, "m", {1: 2}, "response_cache { enable: true }")
    write(tmp_path, "plain", {1: 2})
    for cache, hits in ((ResponseCache(1 << 20), 1), (None, 0)):
        async with repository(tmp_path, mode=NONE, cache=cache) as (served, _):
            for name, expected in (("m", hits), ("plain", 0)):
                assert [await answer(served, name), await answer(served, name)] == [2, 2]
                assert served.get(name).statistics.cache_hit.count == expected
