"""setup_env.sh, tests/run and .ci/run with a Python and an apt-get that only note their use."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = r"""#!/bin/bash
printf -v line '%s ' "$@"
case $line in
	*version_info*) echo VERSION; exit ;;
	*ensurepip*) exit ;;
	'-m venv '*)
		mkdir -p "$3/bin" "$3/lib/python3.11/site-packages/tiny"
		cp "$0" "$3/bin/python" ;;
esac
printf '%s\n' "$line" >>"$CALLS"
[[ $line != *"${FAULT:-nothing}"* ]] || exit "${STATUS:-1}"
"""


class Checkout:
    """The scripts in a folder with a space in its name, and what they called."""

    def __init__(self, folder: Path) -> None:
        self.path, self.calls_path = folder / "a checkout", folder / "calls"
        tools = folder / "tools"
        for directory in (self.path / "tests", self.path / ".ci", tools):
            directory.mkdir(parents=True)
        for name in ("setup_env.sh", "tests/run", ".ci/run"):
            shutil.copy(ROOT / name, self.path / name)
        (self.path / "requirements.txt").write_text("torch==2.1\ntorchvision==0.2\nother==1\n")
        (self.path / "tests/requirements.txt").write_text("tiny==1\n")
        self.tools = tools
        self.python("3.11")
        self.env = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(folder), "LC_ALL": "C",
                    "CALLS": str(self.calls_path), "PYTHON": str(tools / "python3.11")}

    def tool(self, name: str, text: str) -> Path:
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)
        return self.tools / name

    def python(self, version: str) -> Path:
        return self.tool(f"python{version}", PYTHON.replace("VERSION", version))

    def bash(self, *words: object, **settings: object):
        """Run `bash words...`; its calls are `calls`, those before forgotten."""
        self.calls_path.write_text("")
        env = {**self.env, **{name: str(value) for name, value in settings.items()}}
        return subprocess.run(["bash", *map(str, words)], cwd=self.path, env=env, text=True,
                              capture_output=True, timeout=120, check=False)

    def set_up(self, *words: str, **settings: object):
        return self.bash("setup_env.sh", *words, **settings)

    @property
    def calls(self) -> list[str]:
        return [line.rstrip() for line in self.calls_path.read_text().splitlines()]

    @property
    def installed(self) -> list[str]:
        """What pip was asked to install, in order."""
        return [line.split("--no-input ")[1] for line in self.calls
                if line.startswith("-m pip install")]


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def test_torch_comes_from_the_index_asked_for(checkout):
    index = "https://index.invalid/cu128"
    assert checkout.set_up(TORCH_INDEX_URL=index).returncode == 0
    requirements = f"-r {checkout.path}/requirements.txt"
    assert checkout.installed == [f"--index-url {index} torch==2.1 torchvision==0.2", requirements]
    for same in ({"TORCH_INDEX_URL": index}, {}):  # it is remembered
        assert checkout.set_up(**same).returncode == 0 and checkout.calls == []
    assert checkout.set_up("--check", TORCH_INDEX_URL="https://other.invalid").returncode == 1
    assert checkout.set_up(TORCH_INDEX_URL="").returncode == 0
    assert checkout.installed == [requirements]


def test_an_environment_is_of_one_python_version(checkout):
    assert checkout.set_up().returncode == 0
    assert checkout.set_up("--check").returncode == 0
    assert checkout.set_up("--check", PYTHON=checkout.python("3.12")).returncode == 1
    result = checkout.set_up(PYTHON=checkout.python("3.12"))
    assert "of other requirements: making it again" in result.stderr
    assert (checkout.path / ".venv/bin/python").read_text() == PYTHON.replace("VERSION", "3.12")


@pytest.mark.parametrize(("gone", "reason"), [
    (".lungkit-stamp", "half made"), (".lungkit-contents", "half made"), ("bin/python", "broken"),
    ("lib/python3.11/site-packages/tiny", "broken")])
def test_an_environment_that_is_not_whole_is_made_again(gone, reason, checkout):
    assert checkout.set_up().returncode == 0
    (checkout.path / ".venv" / gone).rename(checkout.path / "gone")
    assert checkout.set_up("--check").returncode == 1
    result = checkout.set_up()
    assert result.returncode == 0 and f"is {reason}: making it again" in result.stderr
    assert (checkout.path / ".venv" / gone).exists()


def test_the_tests_requirements_cannot_move_the_pins(checkout):
    assert checkout.set_up().returncode == 0
    assert checkout.set_up(EXTRA_REQUIREMENTS="tests/requirements.txt").returncode == 0
    assert checkout.installed == [f"-r {checkout.path}/tests/requirements.txt "
                                  f"-c {checkout.path}/requirements.txt"]
    assert checkout.set_up().returncode == 0 and checkout.calls == []


def test_what_is_foreign_is_not_deleted(checkout, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    result = checkout.set_up(VENV=mine)
    assert result.returncode == 1 and "is no Python environment" in result.stderr
    assert result.stderr.count("error:") == 1 and (mine / "thesis.txt").exists()
    (mine / "pyvenv.cfg").write_text("")  # someone's environment: moved aside
    result = checkout.set_up(VENV=mine)
    assert result.returncode == 0, result.stderr
    aside, = tmp_path.glob("mine.old-*")
    assert (aside / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("fault", ["-m pip", "-m venv"])
def test_a_failed_install_is_not_used(fault, checkout):
    result = checkout.set_up(FAULT=fault)
    assert result.returncode == 1 and result.stderr.count("error:") == 1
    assert checkout.set_up("--check").returncode == 1
    assert checkout.set_up().returncode == 0 and checkout.installed
    assert checkout.set_up("--check").returncode == 0


def test_modules_are_loaded_before_python_is_looked_for(checkout):
    module = '() { echo "module $*" >>"$CALLS"; [[ $2 != missing ]]; }'
    settings = {"BASH_FUNC_module%%": module}
    assert checkout.set_up(MODULES="python/3.11 cuda/12.8", **settings).returncode == 0
    assert checkout.calls[:2] == ["module load python/3.11", "module load cuda/12.8"]
    assert checkout.calls[2].startswith("-m venv") and len(checkout.installed) == 1
    result = checkout.set_up(MODULES="missing cuda/12.8", **settings)
    assert result.returncode == 1 and "'module load missing' failed" in result.stderr
    assert checkout.calls == ["module load missing"]


def test_sourced_it_puts_the_environment_first_and_alone(checkout):
    show = ('echo "$VIRTUAL_ENV"; command -v python; echo "${PYTHONPATH-none} ${PYTHONHOME-none} '
            '$PYTHONNOUSERSITE"')
    checkout.tool("python", PYTHON)
    result = checkout.bash("-c", f"set -eu; cd tests; source ../setup_env.sh; {show}",
                           PYTHONPATH="/module/packages", PYTHONHOME="/module")
    assert result.stdout.splitlines() == [f"{checkout.path}/.venv",
                                          f"{checkout.path}/.venv/bin/python", "none none 1"]
    result = checkout.bash("-c", f"set -eu; source ./setup_env.sh; {show}", VENV="elsewhere")
    assert result.stdout.splitlines()[0] == f"{checkout.path}/elsewhere"
    result = checkout.bash("-c", "set -eu; source ./setup_env.sh; echo goes on", VENV="new",
                           FAULT="-m pip")
    assert result.returncode == 1 and result.stdout == ""


def test_an_unknown_argument_is_2(checkout):
    result = checkout.set_up("--chekc")
    assert result.returncode == 2 and "unknown argument '--chekc'" in result.stderr
    assert not (checkout.path / ".venv").exists()


def test_tests_run_adds_their_requirements_and_passes_arguments(checkout):
    assert checkout.bash("tests/run", "-m", "not slow").returncode == 0
    assert [words.split()[1].split("/")[-1] for words in checkout.installed] == ["a", "a"]
    assert "tests/requirements.txt" in checkout.installed[1]
    assert checkout.calls[-1] == "-m pytest -m not slow"
    assert checkout.bash("tests/run", FAULT="-m pytest", STATUS=5).returncode == 5
    assert checkout.calls == ["-m pytest"]


# ------------------------------------------------------------------ .ci/run

APT_GET = r"""#!/bin/bash
echo "apt-get $*" >>"$CALLS"
[[ $1 != install ]] || ls "$POLICY" >>"$CALLS"
exit "${APT_STATUS:-0}"
"""


@pytest.fixture
def ci(checkout, tmp_path) -> Checkout:
    """A bare machine: .ci/run finds shellcheck and slurmctld only where a test puts them."""
    needed = ("bash cat chmod cp cut date dirname env flock grep head ls mkdir mv paste rm "
              "sha256sum sort tail timeout").split()
    for name in needed:
        (checkout.tools / name).symlink_to(shutil.which(name))
    checkout.tool("apt-get", APT_GET)
    checkout.tool("id", '#!/bin/bash\necho "${USER_ID:-0}"\n')
    script = (ROOT / ".ci/run").read_text()
    assert ":/usr/sbin" in script and "/usr/sbin/policy-rc.d" in script
    policy = tmp_path / "policy-rc.d"
    (checkout.path / ".ci/run").write_text(
        script.replace("/usr/sbin/policy-rc.d", str(policy))
        .replace("/usr/sbin", str(tmp_path / "sbin")))
    (checkout.path / "tests/slurm_up").write_text(
        'echo "slurm_up $1 $SLURM_LOCAL_ROOT" >>"$CALLS"\n')
    checkout.env |= {"PATH": str(checkout.tools), "POLICY": str(policy), "TMPDIR": str(tmp_path)}
    return checkout


def test_ci_installs_what_is_missing_and_runs_the_tests(ci, tmp_path):
    result = ci.bash(".ci/run", "-x")
    assert result.returncode == 0, result.stderr
    asked = [line.split("recommends ")[1] for line in ci.calls
             if line.startswith("apt-get install")]
    assert asked == ["shellcheck", "slurmctld slurmd slurm-client munge"]
    assert ci.calls.count(str(tmp_path / "policy-rc.d")) == 2  # no package starts its daemon
    assert not (tmp_path / "policy-rc.d").exists()
    tests, stopped = ci.calls[-2:]
    assert tests == "-m pytest -m not (slurm and slow) -x"
    assert stopped.startswith(f"slurm_up down {tmp_path}/lungkit-ci-")
    for name in ("shellcheck", "slurmctld"):
        ci.tool(name, "")
    assert ci.bash(".ci/run").returncode == 0
    assert not [line for line in ci.calls if line.startswith("apt-get")]


@pytest.mark.parametrize("settings", [{"USER_ID": 1000}, {"APT_STATUS": 100}])
def test_ci_goes_on_without_what_it_cannot_install(settings, ci):
    result = ci.bash(".ci/run", **settings)
    assert result.returncode == 0 and ci.calls[-2].startswith("-m pytest")
    assert "installed: shellcheck" in result.stderr \
        or "could not install shellcheck" in result.stderr


def test_ci_ends_with_the_tests_status_and_stops_the_slurm(ci):
    assert ci.bash(".ci/run", FAULT="-m pytest", STATUS=1).returncode == 1
    assert ci.calls[-1].startswith("slurm_up down ")
