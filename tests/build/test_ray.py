"""The same recipe on a cluster of two nodes, for real: the same data set, whatever is killed while it is made."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from build import made
from build.test_download import add_up, recipe
from build.test_run import files
from build.web import Web
from controlnet.build.engine import Threads
from controlnet.build.ray_engine import OnRay
from controlnet.build.recipe import make_recipe
from controlnet.build.run import build
from controlnet.errors import UserError

COUNT, SHARD = 60, 2
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
CANNY = {"kind": "annotate", "condition": "canny", "options": {"detect_resolution": 64}}
TOML = """
shard_size = 20
[source]
kind = "files"
path = "pictures"
[[stage]]
kind = "annotate"
condition = "canny"
[sink]
kind = "folder"
"""


class Nodes:
    """Two nodes on this machine, each with one core to give."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        self.second = self.cluster.add_node(**NODE)
        self.cluster.wait_for_nodes()
        self.address = self.cluster.address

    def remove_second(self):
        self.cluster.remove_node(self.second, allow_graceful=False)

    def actors(self):
        """Processes of the actors, on both nodes."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.cluster.list_all_nodes()]
        children = [child for pid in raylets for child in psutil.Process(pid).children(recursive=True)]
        return [child.pid for child in children if _is_actor(child)]


def _is_actor(process):
    try:
        return "ray::_Worker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # meanwhile
        return False


@pytest.fixture(scope="module", autouse=True)
def niceness():
    """Ray's workers give way to all else by default: on a busy machine they would hardly run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="module")
def nodes(niceness):
    import ray

    nodes = Nodes()
    yield nodes
    ray.shutdown()
    nodes.cluster.shutdown()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A recipe of two parts, with a row of every fate, and what it comes to in this process."""
    here = tmp_path_factory.mktemp("ray")
    folder = made.folder(here / "pictures", COUNT)
    (folder / "020.png").write_bytes((folder / "003.png").read_bytes())
    (folder / "011.png").write_bytes(made.picture(11)[:150])
    told = {
        "source": {"kind": "files", "path": str(folder)},
        "shard_size": SHARD,
        "stage": [{"kind": "sharpness", "least": 0.0}, {"kind": "duplicates"}, CANNY],
        "sink": {"kind": "webdataset"},
    }
    build(make_recipe(told, here / "recipe.toml"), here / "whole")
    return told, here


def test_a_cluster_makes_the_same_data_set_as_one_process(nodes, told, tmp_path):
    recipe, here = told
    built = build(make_recipe(recipe, here / "recipe.toml"), tmp_path / "out", engine=OnRay(nodes.address))
    assert COUNT / 2 < built.rows <= COUNT - 2
    assert files(tmp_path / "out") == files(here / "whole")


def test_what_an_actor_was_doing_when_it_was_killed_is_done_again(nodes, told, tmp_path):
    recipe, here = told
    reports, stopped = 0, 0

    def report(counts):
        nonlocal reports, stopped
        if "source" in counts:
            return
        reports += 1
        if reports == 3:  # from now on it takes shards and does none
            stopped = nodes.actors()[0]
            os.kill(stopped, signal.SIGSTOP)
        if reports == 20:
            os.kill(stopped, signal.SIGKILL)

    build(make_recipe(recipe, here / "recipe.toml"), tmp_path / "out", None, OnRay(nodes.address), report)
    assert files(tmp_path / "out") == files(here / "whole")
    assert reports == 2 * COUNT / SHARD  # each shard is told once, in both parts
    assert stopped
    assert stopped not in nodes.actors()


def test_an_error_of_a_stage_ends_the_run_in_words_and_nothing_goes_on(nodes, told, tmp_path, capfd):
    recipe, here = told
    hopeless = {**recipe, "shard_size": 20, "stage": [{"kind": "download"}]}  # pictures of a disk have no address
    with pytest.raises(UserError, match="rows of a shard failed at the stage download"):
        build(make_recipe(hopeless, here / "recipe.toml"), tmp_path / "out", engine=OnRay(nodes.address))
    end = time.monotonic() + 60
    while nodes.actors() and time.monotonic() < end:
        time.sleep(0.05)
    assert not nodes.actors()
    assert "Traceback" not in capfd.readouterr().err


def test_rows_that_failed_for_now_are_taken_up_again_as_in_one_process(nodes, tmp_path):
    """A host that is back when all else is done: its rows go through the stages that follow, though a worker is killed
    meanwhile. Later another is up: a finished build takes up its rows, on the cluster as in one process."""
    killed = []
    with Web() as web:
        late = [f"{number}.jpg" for number in range(0, 30, 3)]
        urls = [web.url(f"{number}.jpg", "late" if number % 3 == 0 else "plain") for number in range(30)]
        urls += [web.url("3.jpg"), web.url("404"), *(web.url(f"{number}.jpg", "down") for number in range(40, 43))]
        stages = [{"kind": "resize", "size": 32}, {"kind": "duplicates"}, CANNY]
        made = recipe(tmp_path, web, urls, *stages, size=6)
        for name in ("threads", "ray"):

            def mend(counts, name=name):
                web.is_mended = all(web.times(path, "late") >= 2 for path in late)  # each shard has failed at them
                if name == "ray" and web.is_mended and not killed:
                    killed.append(nodes.actors()[0])
                    os.kill(killed[0], signal.SIGKILL)

            web.begin_anew()
            out, engine = tmp_path / name, Threads(2) if name == "threads" else OnRay(nodes.address, workers=2)
            built = build(made, out, engine=engine, report=mend)
            assert built.counts["download"].failed == {"http 503": 3, "http 404": 1}
            assert web.times("40.jpg", "down") == 4, "twice, and twice again when all others were done"
            web.is_up = True
            built = build(made, out, engine=engine, retry_failed=True)
            assert built.counts["download"].failed == {"http 404": 1}
            assert built.counts["duplicates"].dropped == {"duplicate by phash": 1}
            assert built.rows == 33
            add_up(out)
    assert killed
    assert files(tmp_path / "ray") == files(tmp_path / "threads")


@pytest.mark.slow
def test_a_stage_that_cannot_be_set_up_says_why_at_once(nodes, told, tmp_path):
    recipe, here = told
    missing = {**recipe, "stage": [{"kind": "retrieve", "index": str(here / "no-such-index")}]}
    with pytest.raises(UserError, match="no-such-index is no index"):
        build(make_recipe(missing, here / "recipe.toml"), tmp_path / "out", engine=OnRay(nodes.address))


def test_when_a_node_is_lost_the_others_do_its_shards(nodes, told, tmp_path):
    recipe, here = told
    reports = 0

    def report(counts):
        nonlocal reports
        reports += "source" not in counts
        if reports == 5:
            nodes.remove_second()

    build(make_recipe(recipe, here / "recipe.toml"), tmp_path / "out", None, OnRay(nodes.address), report)
    assert files(tmp_path / "out") == files(here / "whole")


def test_the_command_begins_a_cluster_of_its_own(tmp_path):
    made.folder(tmp_path / "pictures", COUNT)
    (tmp_path / "recipe.toml").write_text(TOML)
    for name, options in (("threads", []), ("ray", ["--ray", "local", "--workers", "2"])):
        command = [sys.executable, "-m", "controlnet", "build", "recipe.toml", name, *options]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert f"{COUNT} rows in 3 shards" in result.stdout
    assert files(tmp_path / "ray") == files(tmp_path / "threads")


def test_an_address_where_no_cluster_is_says_so(tmp_path):
    made.folder(tmp_path / "pictures", 1)
    (tmp_path / "recipe.toml").write_text(TOML)
    command = [sys.executable, "-m", "controlnet", "build", "recipe.toml", "out", "--ray", "127.0.0.1:9"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert "no Ray cluster at 127.0.0.1:9" in result.stderr
    assert "Traceback" not in result.stderr
